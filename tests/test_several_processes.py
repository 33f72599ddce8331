"""Training and evaluation in two processes of a CPU, through the Runner and MMEngine's launcher."""

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from small_runs import ROOT, SIZE, in_processes, recorded, small_config, train_alone

from mmdat.apis import evaluate, train
from mmdat.errors import RunError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='CPU processes; with GPUs the Runner takes those')
slow = pytest.mark.slow
WORLD = 2
# Float32 sums in another order: losses, and weights relative to the largest change that training made to them.
TOLERANCE = 1e-4


DEMO_DATA = dict(num_train=8, num_val=3, size=SIZE)


def train_process(task, generation, work_dir, options, auto_scale_lr):
    cfg = small_config(task, generation, work_dir, options)
    cfg.launcher = 'pytorch'
    train(cfg, auto_scale_lr=auto_scale_lr)


def train_together(task, generation, work_dir, options=None, auto_scale_lr=False):
    """Train in two processes; what each recorded."""
    in_processes(WORLD, train_process, task, generation, str(work_dir), options or {}, auto_scale_lr)
    return [recorded(work_dir, rank) for rank in range(WORLD)]


def assert_same_weights(weights, expected, before):
    """The changes of training are the same; ``before`` are the weights that it began with."""
    assert weights.keys() == expected.keys()
    floats = [name for name, value in expected.items() if value.is_floating_point()]
    largest = max((expected[name] - before[name]).abs().max() for name in floats)
    assert largest > 1e-3
    for name in floats:
        assert (weights[name] - expected[name]).abs().max() <= TOLERANCE * largest, name


GN = dict(type='GN', num_groups=8)
#: Batch statistics are those of a process.
WITHOUT_BATCH_STATISTICS = {'model.decode_head.norm_cfg': GN, 'model.auxiliary_head.norm_cfg': GN}


@pytest.mark.parametrize(
    'task, generation',
    [
        ('upernet', 'datpp'),
        pytest.param('classifier', 'dat', marks=slow),
        pytest.param('classifier', 'datpp', marks=slow),
        pytest.param('upernet', 'dat', marks=slow),
    ],
)
def test_two_processes_train_as_one_with_the_joined_batch(task, generation, workplace):
    """Losses that are means over images or pixels; every parameter has a gradient, or the second step fails."""
    options = WITHOUT_BATCH_STATISTICS if task == 'upernet' else {}
    together = train_together(task, generation, workplace / 'together', options)
    alone = train_alone(task, generation, workplace / 'alone', {**options, 'train_dataloader.batch_size': 2 * WORLD})
    assert len(alone['losses']) == 2
    for step, losses in enumerate(alone['losses']):
        for name, value in losses.items():
            if 'acc' not in name:
                mean = sum(run['losses'][step][name] for run in together) / WORLD
                assert mean == pytest.approx(value, rel=TOLERANCE), name
    before = train_alone(task, generation, workplace / 'before', {**options, 'optim_wrapper.optimizer.lr': 0.0})
    for run in together:
        assert_same_weights(run['weights'], alone['weights'], before['weights'])


@pytest.mark.parametrize('generation', ['dat', pytest.param('datpp', marks=slow)])
def test_a_step_of_a_detector_is_the_mean_of_its_processes(generation, workplace):
    """MMDetection divides losses by counts of its own process: the joined batch would weigh them otherwise."""
    # Which boxes train is drawn at random, by each process for itself: here all of them do.
    all_boxes = {
        'model.train_cfg.rpn_proposal.max_per_img': 50,
        **{f'model.train_cfg.{head}.sampler.num': 10**6 for head in ('rpn', 'rcnn')},
    }
    one_step = {**all_boxes, 'train_dataloader.dataset.indices': [0, 1, 2, 3]}
    together = train_together('maskrcnn', generation, workplace / 'together', one_step)
    alone = [
        train_alone(
            'maskrcnn',
            generation,
            workplace / f'alone{rank}',
            {**all_boxes, 'train_dataloader.dataset.indices': [rank, rank + 2]},
        )
        for rank in range(WORLD)
    ]
    for run, expected in zip(together, alone):
        assert run['losses'] == [pytest.approx(losses, rel=TOLERANCE) for losses in expected['losses']]
    mean = {name: sum(run['weights'][name] for run in alone) / WORLD for name in alone[0]['weights']}
    before = train_alone('maskrcnn', generation, workplace / 'before', {**one_step, 'optim_wrapper.optimizer.lr': 0.0})
    for run in together:
        assert_same_weights(run['weights'], mean, before['weights'])


@pytest.mark.parametrize(
    'task, generation',
    [('maskrcnn', 'datpp'), pytest.param('maskrcnn', 'dat', marks=slow)],
)
def test_no_parameter_is_unused_and_the_learning_rate_follows_the_batch(task, generation, workplace):
    options = {'train_dataloader.batch_size': 1, 'auto_scale_lr.base_batch_size': 8}
    runs = train_together(task, generation, workplace / 'work', options, auto_scale_lr=True)
    for run in runs:
        assert len(run['losses']) == 4
        assert run['rates'] == [pytest.approx(0.01 * WORLD / 8)] * 4
        assert all(torch.equal(value, runs[0]['weights'][name]) for name, value in run['weights'].items())


@HOOKS.register_module()
class Draws(Hook):
    """Leaves the images of each iteration, and random numbers that the model could have drawn in it."""

    def __init__(self):
        self.images, self.numbers = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.images.append([Path(sample.img_path).name for sample in data_batch['data_samples']])
        self.numbers.append((torch.rand(()).item(), np.random.rand(), random.random()))

    def after_train(self, runner):
        torch.save((self.images, self.numbers), f'draws{get_rank()}-of-{get_world_size()}.pth')


def draw_process(options, launcher):
    cfg = small_config('classifier', 'dat', f'draw-{launcher}', options)
    cfg.custom_hooks = [dict(type='Draws')]
    cfg.launcher = launcher
    train(cfg)


def test_processes_draw_other_numbers_and_share_out_the_images_of_one_run(workplace):
    options = {'train_dataloader.sampler.shuffle': True, 'train_cfg.max_epochs': 2, 'randomness': dict(seed=5)}
    draw_process({**options, 'train_dataloader.batch_size': 2 * WORLD}, 'none')
    in_processes(WORLD, draw_process, options, 'pytorch')
    (alone, _), *together = (torch.load(f'draws{name}.pth') for name in ('0-of-1', '0-of-2', '1-of-2'))
    images = [[image for pair in zip(*batches) for image in pair] for batches in zip(*(run[0] for run in together))]
    assert images == alone and len(alone) == 4 and alone[:2] != alone[2:]
    numbers = [number for _, draws in together for iteration in draws for number in iteration]
    assert len(set(numbers)) == len(numbers) == 2 * 4 * 3


#: A run by iterations with shuffled and randomly flipped images, from a worker.
BY_ITERATIONS = {
    **WITHOUT_BATCH_STATISTICS,
    'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=5),
    'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler', shuffle=True),
    'train_dataloader.num_workers': 1,
    'model.backbone.drop_path_rate': 0.3,
    'default_hooks.checkpoint': dict(by_epoch=False, interval=3),
    'log_processor.by_epoch': False,
}


def resume_process(generation, work_dir, resume):
    cfg = small_config('upernet', generation, work_dir, BY_ITERATIONS)
    cfg.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomFlip', prob=0.5))
    cfg.launcher = 'pytorch'
    train(cfg, resume=resume)


@slow
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_two_processes_go_on_as_if_uninterrupted(generation, workplace):
    in_processes(WORLD, resume_process, generation, 'whole', None)
    in_processes(WORLD, resume_process, generation, 'resumed', 'whole/iter_3.pth')
    for rank in range(WORLD):
        whole, resumed = recorded('whole', rank), recorded('resumed', rank)
        assert len(resumed['losses']) == 2 and resumed['losses'] == whole['losses'][3:]
        assert all(torch.equal(value, resumed['weights'][name]) for name, value in whole['weights'].items())
    assert recorded('whole', 0)['losses'] != recorded('whole', 1)['losses']


def evaluate_process(task, generation, work_dir, checkpoint, launcher, options):
    cfg = small_config(task, generation, work_dir, options)
    cfg.launcher = launcher
    figures = evaluate(cfg, checkpoint, out=f'{work_dir}.pkl')
    figures = {name: float(value) for name, value in figures.items()}
    torch.save(figures, f'{work_dir}-{os.environ.get("RANK", "0")}.pth')


@pytest.mark.parametrize('task, generation, metric', [('maskrcnn', 'dat', 'coco/bbox_mAP')])
def test_evaluation_gathers_every_image_once(task, generation, metric, workplace):
    """Three images for two processes: one of them gets an image twice, which must not count."""
    options = {
        'test_dataloader.batch_size': 1,
        'custom_hooks': [],
        # All guesses of a model that has hardly learned anything.
        **({'model.test_cfg.rcnn.score_thr': 0.0} if task == 'maskrcnn' else {}),
    }
    trained = train_alone(task, generation, workplace / 'trained')
    torch.save({'state_dict': trained['weights']}, 'checkpoint.pth')
    evaluate_process(task, generation, 'alone', 'checkpoint.pth', 'none', options)
    in_processes(WORLD, evaluate_process, task, generation, 'together', 'checkpoint.pth', 'pytorch', options)
    alone = torch.load('alone-0.pth')
    assert metric in alone
    for rank in range(WORLD):
        assert torch.load(f'together-{rank}.pth') == pytest.approx(alone, rel=1e-6, nan_ok=True)
    images = {}
    for name in ('alone', 'together'):
        with open(f'{name}.pkl', 'rb') as file:
            images[name] = [sample['img_path'] for sample in pickle.load(file)]
    assert images['together'] == images['alone']
    assert len(set(images['alone'])) == len(images['alone']) == 3


@slow
def test_synchronised_batch_norm_becomes_batch_norm_and_that_is_said_once(workplace, capfd):
    norm = {f'model.{head}.norm_cfg': dict(type='SyncBN') for head in ('decode_head', 'auxiliary_head')}
    runs = train_together('upernet', 'dat', workplace / 'work', norm)
    assert all(len(run['losses']) == 2 for run in runs)
    statistics = [run['weights']['decode_head.fpn_bottleneck.bn.running_mean'] for run in runs]
    assert not torch.equal(*statistics)  # each process has those of its own images
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count('SyncBN works on GPUs only') == 1


@slow
@pytest.mark.skipif(torch.__version__.startswith('2.1.'), reason="torch 2.1's FSDP needs a GPU")
@pytest.mark.parametrize(
    'task, generation',
    [
        ('classifier', 'dat'),
        ('classifier', 'datpp'),
        ('upernet', 'dat'),
        ('upernet', 'datpp'),
        ('maskrcnn', 'dat'),
        ('maskrcnn', 'datpp'),
    ],
)
def test_sharded_training_is_that_of_two_processes(task, generation, workplace):
    """configs/sharded/fsdp.py: the same losses, and a checkpoint of the whole model that goes on unsharded."""
    options = {'optim_wrapper.optimizer': dict(_delete_=True, type='AdamW', lr=1e-3)}
    expected = train_together(task, generation, workplace / 'ddp', options)
    options.update({'default_hooks.checkpoint.interval': 1, 'default_hooks.checkpoint.by_epoch': True})
    in_processes(WORLD, sharded_process, task, generation, str(workplace / 'fsdp'), options)
    for rank in range(WORLD):
        losses = torch.load(workplace / f'fsdp/run{rank}.pth')['losses']
        assert losses == [pytest.approx(step, rel=1e-3) for step in expected[rank]['losses']]
    checkpoint = torch.load(workplace / 'fsdp/epoch_1.pth', weights_only=False)
    weights = checkpoint['state_dict']
    assert weights.keys() == expected[0]['weights'].keys()
    for name, value in expected[0]['weights'].items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)
    evaluate(small_config(task, generation, workplace / 'test'), str(workplace / 'fsdp/epoch_1.pth'))


def sharded_process(task, generation, work_dir, options):
    cfg = small_config(task, generation, work_dir, options)
    cfg.merge_from_dict(sharding())
    cfg.launcher = 'pytorch'
    train(cfg)


def sharding():
    from mmengine.config import Config

    return Config.fromfile(ROOT / 'configs/sharded/fsdp.py').to_dict()


@pytest.mark.parametrize(
    'options, message',
    [
        ({}, 'start them with tools/dist_train.sh'),
        ({'launcher': 'pytorch', 'optim_wrapper.clip_grad': dict(max_norm=1.0)}, 'optim_wrapper.clip_grad=None'),
        (
            {'launcher': 'pytorch', 'optim_wrapper.constructor': 'mmdat.LayerDecayOptimWrapperConstructor'},
            'does not go with mmdat.LayerDecayOptimWrapperConstructor',
        ),
    ],
)
def test_what_sharded_training_does_not_go_with(options, message, workplace):
    cfg = small_config('maskrcnn', 'dat', workplace / 'work', options)
    cfg.merge_from_dict(sharding())
    with pytest.raises(RunError, match=message):
        train(cfg)
