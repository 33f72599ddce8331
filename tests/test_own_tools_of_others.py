"""Other projects' own scripts train configs with ``type='mmdat.DAT'``; nobody imports mmdat for them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmdat.datasets import make_shapes

BACKBONE = """
backbone = dict(
    _delete_=True,
    type='mmdat.DAT',
    arch=dict(
        generation='dat', dims=(16, 32, 64, 128), depths=(1, 1, 2, 2), heads=(1, 2, 4, 8), groups=(-1, -1, 2, 4),
        stage_spec=('L', 'S', 'LD', 'SD')))
model = dict(backbone=backbone, neck=dict(in_channels=[16, 32, 64, 128]))
val_dataloader = val_cfg = val_evaluator = None
train_cfg = dict(max_epochs=1, val_interval=10)
default_hooks = dict(logger=dict(interval=1))
"""
MASK_RCNN = """
_base_ = '{mim}/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
dataset = dict(
    data_root='{data}/', ann_file='annotations/instances_train.json', data_prefix=dict(img='images/training'),
    indices=2, metainfo=dict(classes=('circle', 'square', 'triangle', 'star')))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
"""
ORIENTED_RCNN = """
_base_ = '{mim}/configs/oriented_rcnn/oriented-rcnn-le90_r50_fpn_1x_dota.py'
dataset = dict(data_root='{data}/', ann_file='labels/', data_prefix=dict(img_path='images/'))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
"""


def train_with_tools_of(package: str, config: str, data: Path, directory: Path) -> None:
    if find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    mim = Path(find_spec(package).origin).parent / '.mim'
    file = directory / 'config.py'
    file.write_text(config.format(mim=mim, data=data) + BACKBONE)
    command = [sys.executable, str(mim / 'tools' / 'train.py'), str(file), '--work-dir', str(directory / 'run')]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (directory / 'run' / 'epoch_1.pth').exists()


@pytest.mark.slow
def test_mmdet(tmp_path):
    make_shapes(tmp_path / 'shapes', num_train=2, num_val=1, size=96)
    train_with_tools_of('mmdet', MASK_RCNN, tmp_path / 'shapes', tmp_path)


@pytest.mark.slow
def test_mmrotate(tmp_path):
    """Its Oriented R-CNN needs IoU, NMS and RoIAlign of rotated boxes."""
    data = tmp_path / 'dota'
    for name in ('images', 'labels'):
        (data / name).mkdir(parents=True)
    for index in range(2):
        corners = cv2.boxPoints(((60.0 + 8 * index, 64), (50, 24), 30 + 20 * index)).round().astype(int)
        image = np.full((128, 128, 3), 60, dtype=np.uint8)
        cv2.imwrite(str(data / 'images' / f'{index}.png'), cv2.fillPoly(image, [corners], (200, 120, 40)))
        (data / 'labels' / f'{index}.txt').write_text(' '.join(map(str, corners.ravel())) + ' plane 0\n')
    train_with_tools_of('mmrotate', ORIENTED_RCNN, data, tmp_path)
