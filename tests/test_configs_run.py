"""One training iteration and one evaluation of a config of each family and generation, through the Runner.

Full-size models on generated images; overrides change the data, the number of classes and the length, nothing else.
"""

import json
import math
from pathlib import Path

import pytest

from mmdat.apis import train
from mmdat.config.load import load_config
from mmdat.datasets import make_shapes

ROOT = Path(__file__).parents[1] / 'configs'
SIZE = (96, 96)
slow = pytest.mark.slow

# Few proposals and detections.
SMALL_RPN = {
    'model.train_cfg.rpn_proposal.max_per_img': 50,
    'model.test_cfg.rpn.max_per_img': 20,
    'model.test_cfg.rcnn.max_per_img': 5,
    'model.test_cfg.rcnn.score_thr': 0.0,  # so that an untrained model finds something to evaluate
}
CLASS_WEIGHT = [1.0] * 4 + [0.1]
SMALL_MASK2FORMER = {
    'model.panoptic_head.num_things_classes': 4,
    'model.panoptic_head.loss_cls.class_weight': CLASS_WEIGHT,
    'model.panoptic_fusion_head.num_things_classes': 4,
    'model.data_preprocessor.batch_augments.0.size': SIZE,
    'model.train_cfg.num_points': 256,
    'model.test_cfg.max_per_image': 5,
}

# Config of a family, the override that puts it on the generated data, what else makes it small, and a metric.
FAMILIES = [
    pytest.param('retinanet_{}_t_1x_coco', 'coco', {'model.test_cfg.score_thr': 0.0}, 'coco/bbox_mAP', id='retinanet'),
    pytest.param('maskrcnn_{}_t_3x_coco', 'coco', SMALL_RPN, 'coco/segm_mAP', id='maskrcnn'),
    pytest.param(
        'cascade_maskrcnn_{}_t_1x_coco', 'coco', SMALL_RPN, 'coco/segm_mAP', id='cascade_maskrcnn', marks=slow
    ),
    pytest.param('semfpn_{}_t_*_ade20k', 'ade20k', {}, 'mIoU', id='semfpn'),
    pytest.param('upernet_{}_t_160k_ade20k', 'ade20k', {}, 'mIoU', id='upernet', marks=slow),
    pytest.param('{}_t_300e_in1k', 'in1k', {}, 'accuracy/top1', id='classifier'),
    pytest.param('{}_b_30e_in1k_384', 'in1k', {}, 'accuracy/top1', id='classifier_384', marks=slow),
    pytest.param(
        'dino_{}_t_12e_coco',
        'coco',
        {'model.num_queries': 20, 'model.test_cfg.max_per_img': 20},
        'coco/bbox_mAP',
        id='dino',
        marks=slow,
    ),
    pytest.param(
        'mask2former_{}_t_50e_coco', 'coco', SMALL_MASK2FORMER, 'coco/segm_mAP', id='mask2former_coco', marks=slow
    ),
    pytest.param(
        'mask2former_{}_t_160k_ade20k',
        'ade20k',
        {'model.decode_head.loss_cls.class_weight': [1.0] * 5 + [0.1]},
        'mIoU',
        id='mask2former_ade20k',
        marks=slow,
    ),
]


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    path = tmp_path_factory.mktemp('run')
    make_shapes(path / 'data/shapes', num_train=2, num_val=1, size=SIZE[0])
    return path


def load(name: str, task: str, options: dict):
    """The config of a family with the demo's override and the options: one iteration on small images."""
    (path,) = ROOT.glob(f'{name}.py')
    config = load_config(str(path), str(ROOT / f'demo/on_shapes_{task}.py'))
    loop = config.train_cfg
    length = 'max_iters' if 'max_iters' in loop else 'max_epochs'
    config.train_cfg = dict(loop, **{length: 1, 'val_interval': 1})
    if length == 'max_iters':
        config.train_cfg.pop('max_epochs', None)  # of the override, which knows epochs only
        config.train_cfg.pop('dynamic_intervals', None)
    for part in ('train', 'val', 'test'):
        dataset = config[f'{part}_dataloader'].dataset
        dataset.indices = 2 if part == 'train' else 1
        resize(dataset.pipeline)
    config.merge_from_dict(
        {
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint': dict(interval=100, save_last=False),
            # The visualizer writes the log, and there is one per name in a process.
            'visualizer.name': path.stem,
            **options,
        }
    )
    return config


def resize(pipeline: list) -> None:
    for transform in pipeline:
        if transform.type in ('Resize', 'ResizeEdge'):
            transform.scale = SIZE[0] if transform.type == 'ResizeEdge' else SIZE


@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('name, task, options, metric', FAMILIES)
def test_family_trains_and_evaluates(generation, name, task, options, metric, workplace, tmp_path, monkeypatch):
    monkeypatch.chdir(workplace)
    config = load(name.format(generation), task, options)
    config.work_dir = str(tmp_path)
    train(config)
    records = [json.loads(line) for line in next(tmp_path.glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [record['loss'] for record in records if 'loss' in record]
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert any(metric in record for record in records)
