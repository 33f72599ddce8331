"""Other projects' own scripts train and evaluate configs with ``type='mmdat.DAT'``; nobody imports mmdat for them."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import NANO

from mmdat.datasets import make_shapes

pytestmark = [pytest.mark.slow, pytest.mark.parametrize('generation', sorted(NANO))]

MASK_RCNN = """
_base_ = '{mim}/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
dataset = dict(
    data_root='{data}/', ann_file='annotations/instances_train.json', data_prefix=dict(img='images/training'),
    metainfo=dict(classes=('circle', 'square', 'triangle', 'star')))
val_evaluator = dict(ann_file='{data}/annotations/instances_train.json')
model = dict(
    backbone=dict(_delete_=True, type='mmdat.DAT', arch={arch}),
    neck=dict(in_channels=[16, 32, 64, 128]), test_cfg=dict(rcnn=dict(score_thr=0.0)),
    roi_head=dict(bbox_head=dict(num_classes=4), mask_head=dict(num_classes=4)))
"""
ORIENTED_RCNN = """
_base_ = '{mim}/configs/oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'
dataset = dict(data_root='{data}/', ann_file='labels/', data_prefix=dict(img_path='images/'))
model = dict(
    backbone=dict(_delete_=True, type='mmdat.DAT', arch={arch}),
    neck=dict(in_channels=[16, 32, 64, 128]))
"""
HEATMAPS = """
_base_ = '{mim}/configs/body_2d_keypoint/topdown_heatmap/coco/td-hm_res50_8xb64-210e_coco-256x192.py'
dataset = dict(data_root='{data}/', ann_file='people.json', data_prefix=dict(img=''), bbox_file=None)
val_evaluator = dict(ann_file='{data}/people.json')
model = dict(
    backbone=dict(_delete_=True, type='mmdat.DAT', arch={arch}, out_indices=(3,)),
    head=dict(in_channels=128))
"""
SHORT = """
train_cfg = dict(max_epochs=1, val_interval=1)
loading = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(batch_size=2, dataset=dataset, **loading)
val_dataloader = dict(batch_size=1, dataset=dataset, **loading)
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=1))
"""


def run_tools_of(package: str, config: str, generation: str, data: Path, *options: str) -> dict:
    """What the package's train.py, with options for the config, measured after an epoch."""
    if find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    mim = Path(find_spec(package).origin).parent / '.mim'
    file = data / 'config.py'
    file.write_text(config.format(mim=mim, data=data, arch=NANO[generation]) + SHORT)
    command = [sys.executable, str(mim / 'tools' / 'train.py'), str(file), '--work-dir', str(data / 'run')]
    command += ['--cfg-options', *options] if options else []
    done = subprocess.run(command, cwd=data, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (data / 'run' / 'epoch_1.pth').exists()
    (lines,) = (data / 'run').glob('*/vis_data/scalars.json')
    return json.loads(lines.read_text().splitlines()[-1])


def smaller(step: int) -> list[str]:
    """Options that make images 128 pixels wide: ``step`` of the training's pipeline, and the second of the test's."""
    steps = dict(train=step, val=1)
    return [f'{part}_dataloader.dataset.pipeline.{step}.scale=(128,128)' for part, step in steps.items()]


def test_mmdet(generation, tmp_path):
    make_shapes(tmp_path / 'shapes', num_train=2, num_val=1, size=96)
    figures = run_tools_of('mmdet', MASK_RCNN, generation, tmp_path / 'shapes', *smaller(2))
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= set(figures)


def test_mmrotate(generation, tmp_path):
    """Its Oriented R-CNN needs IoU, NMS and RoIAlign of rotated boxes."""
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for index in range(2):
        corners = cv2.boxPoints(((60.0 + 8 * index, 64), (50, 24), 30 + 20 * index)).round().astype(int)
        image = np.full((128, 128, 3), 60, dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / f'{index}.png'), cv2.fillPoly(image, [corners], (200, 120, 40)))
        (tmp_path / 'labels' / f'{index}.txt').write_text(' '.join(map(str, corners.ravel())) + ' plane 0\n')
    assert 'dota/mAP' in run_tools_of('mmrotate', ORIENTED_RCNN, generation, tmp_path, *smaller(3))


def test_mmpose(generation, tmp_path):
    """Heat maps of the joints of a person, from the last map alone."""
    people, images = [], []
    for index in range(2):
        joints = np.random.default_rng(index).integers(30, 98, (17, 2))
        image = np.full((128, 128, 3), 60, dtype=np.uint8)
        for joint in joints:
            cv2.circle(image, joint.tolist(), 3, (200, 120, 40), -1)
        cv2.imwrite(str(tmp_path / f'{index}.png'), image)
        images.append(dict(id=index, file_name=f'{index}.png', height=128, width=128))
        keypoints = np.insert(joints, 2, 2, axis=1).ravel().tolist()  # each visible
        box = dict(bbox=[20, 20, 88, 88], area=88 * 88, iscrowd=0)
        people.append(dict(id=index, image_id=index, category_id=1, keypoints=keypoints, num_keypoints=17, **box))
    table = dict(images=images, annotations=people, categories=[dict(id=1, name='person')])
    (tmp_path / 'people.json').write_text(json.dumps(table))
    assert 'coco/AP' in run_tools_of('mmpose', HEATMAPS, generation, tmp_path)
