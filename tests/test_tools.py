"""tools/train.py and tools/test.py on real data: every task, both generations, and the full-size configs."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from in_process import call_tool
from mmengine.config import Config
from paths import DEMO, ROOT

# Runs of a few iterations: no processes for loading, one image per step of evaluation.
QUICK = [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
] + ['default_hooks.checkpoint.interval=1', 'default_hooks.logger.interval=1']


DEMO_DATA = dict(num_train=4, num_val=2, size=128)


def scalars(work_dir):
    """All logged values of the latest run."""
    latest = max(work_dir.glob('*_*/vis_data/scalars.json'))
    return latest.read_text()


# An untrained detector finds something everywhere; to segment, evaluate and draw all of it takes long.
FEW = 'model.train_cfg.rpn_proposal.max_per_img=50 model.test_cfg.rpn.max_per_img=20 model.test_cfg.rcnn.max_per_img=5'
# Config, an option for training to step 1 and one for going on to step 2, and how step checkpoints are called.
TASKS = {
    'maskrcnn': (f'{FEW} train_cfg.max_epochs={{}} train_cfg.val_interval=1', 'epoch_{}.pth', 'coco/segm_mAP', 2),
    'upernet': ('train_cfg.max_iters={} train_cfg.val_interval=1', 'iter_{}.pth', 'mIoU', 1),
    'classifier': ('train_cfg.max_epochs={} train_cfg.val_interval=1', 'epoch_{}.pth', 'accuracy/top1', 2),
}


@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('task', sorted(TASKS))
def test_train_resume_test(task, generation, workplace, monkeypatch):
    schedule, checkpoint, metric, iterations = TASKS[task]
    name = f'{generation}nano_shapes' if task == 'classifier' else f'{task}_{generation}nano_shapes'
    config, work_dir = DEMO / f'{name}.py', workplace / 'work'
    common = [config, '--work-dir', work_dir, '--cfg-options', *QUICK]

    call_tool(monkeypatch, 'train', *common, *schedule.format(1).split())
    first = torch.load(work_dir / checkpoint.format(1), map_location='cpu', weights_only=False)
    assert first['meta']['iter'] == iterations
    assert metric in scalars(work_dir)

    call_tool(monkeypatch, 'train', *common, *schedule.format(2).split(), '--resume')
    second = torch.load(work_dir / checkpoint.format(2), map_location='cpu', weights_only=False)
    assert second['meta']['iter'] == 2 * iterations
    log = max(work_dir.glob('*_*/*.log')).read_text()
    assert f'resumed epoch: 1, iter: {iterations}' in log or f'resumed epoch: 0, iter: {iterations}' in log
    assert 'will be deprecated' not in log
    assert any(not torch.equal(second['state_dict'][key], value) for key, value in first['state_dict'].items())

    out, pictures = workplace / 'predictions.pkl', workplace / 'pictures'
    call_tool(
        monkeypatch,
        'test',
        config,
        work_dir / checkpoint.format(2),
        '--out',
        out,
        '--show-dir',
        pictures,
        *common[1:],
        *schedule.format(2).split(),
    )
    assert len(pickle.loads(out.read_bytes())) == 2
    assert len([path for path in pictures.rglob('*') if path.suffix in ('.jpg', '.png')]) == 2
    deformable = {'dat': {'stage3.png', 'stage4.png'}, 'datpp': {'stage2.png', 'stage3.png', 'stage4.png'}}
    assert {path.name for path in (work_dir / 'sampling_points').iterdir()} == deformable[generation]


def test_resume_without_a_checkpoint_starts_from_scratch_and_says_so(workplace, monkeypatch):
    call_tool(
        monkeypatch,
        'train',
        DEMO / 'datnano_shapes.py',
        '--work-dir',
        'work',
        '--resume',
        '--cfg-options',
        *QUICK,
        'train_cfg.max_epochs=1',
    )
    log = max(Path('work').glob('*_*/*.log')).read_text()
    assert 'There is no checkpoint to resume from' in log
    assert Path('work/epoch_1.pth').exists()


def test_auto_scale_lr(workplace, monkeypatch):
    call_tool(
        monkeypatch,
        'train',
        DEMO / 'datnano_shapes.py',
        '--work-dir',
        'work',
        '--auto-scale-lr',
        '--cfg-options',
        *QUICK,
        'train_cfg.max_epochs=1',
    )
    assert 'Scaling the original LR by 0.125' in max(Path('work').glob('*_*/*.log')).read_text()


def test_test_time_augmentation(workplace, monkeypatch):
    config = DEMO / 'upernet_datnano_shapes.py'
    call_tool(monkeypatch, 'train', config, '--work-dir', 'work', '--cfg-options', *QUICK, 'train_cfg.max_iters=1')
    call_tool(monkeypatch, 'test', config, 'work/iter_1.pth', '--work-dir', 'tta', '--tta', '--cfg-options', *QUICK)
    assert 'mIoU' in max(Path('tta').glob('*_*/*.json')).read_text()


@pytest.mark.parametrize(
    'config, override, options, metric',
    [
        # The cheapest; in this process, tests/test_configs_run.py runs the others.
        (
            'dat_t_300e_in1k',
            'on_shapes_in1k',
            ['train_dataloader.dataset.indices=2', 'val_dataloader.dataset.indices=2'],
            'accuracy/top1',
        ),
        pytest.param(
            'maskrcnn_dat_t_1x_coco',
            'on_shapes_coco',
            ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1'],
            'coco/segm_mAP',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'upernet_dat_t_160k_ade20k',
            'on_shapes_ade20k',
            ['train_cfg.max_iters=2', 'train_cfg.val_interval=2'],
            'mIoU',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_full_size_configs_run_on_the_demo_data(config, override, options, metric, workplace):
    """The user's way: the script in a process of its own, the config changed by nothing but the override."""
    command = [
        sys.executable,
        str(ROOT / 'tools/train.py'),
        str(ROOT / 'configs' / f'{config}.py'),
        '--override',
        str(DEMO / f'{override}.py'),
        '--cfg-options',
        *options,
    ]
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    work_dir = workplace / 'work_dirs' / f'{config}-{override}'
    assert metric in scalars(work_dir)
    model = Config.fromfile(work_dir / f'{config}.py').model
    assert model.backbone.arch == 'tiny'


def test_override_replaces_the_number_of_classes_everywhere(workplace):
    """Heads differ in where they keep it, and Mixup has it in the preprocessor."""
    from mmdat.config.load import load_config

    for config, override, places in [
        ('retinanet_dat_t_1x_coco', 'coco', lambda cfg: [cfg.model.bbox_head]),
        ('maskrcnn_datpp_t_1x_coco', 'coco', lambda cfg: [cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]),
        ('upernet_dat_t_160k_ade20k', 'ade20k', lambda cfg: [cfg.model.decode_head, cfg.model.auxiliary_head]),
        ('dat_t_300e_in1k', 'in1k', lambda cfg: [cfg.model.head, cfg.data_preprocessor]),
    ]:
        cfg = load_config(str(ROOT / 'configs' / f'{config}.py'), str(DEMO / f'on_shapes_{override}.py'))
        assert [place.num_classes for place in places(cfg)] == [5 if override == 'ade20k' else 4] * len(places(cfg))
        assert cfg.work_dir == f'work_dirs/{config}-on_shapes_{override}'
