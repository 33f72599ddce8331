"""Other projects' own scripts train configs with ``type='mmdat.DAT'``; nobody imports mmdat for them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from mmdat.datasets import make_shapes

CONFIG = """
_base_ = '{mim}/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdat.DAT',
        arch=dict(
            generation='dat', dims=(16, 32, 64, 128), depths=(1, 1, 2, 2), heads=(1, 2, 4, 8), groups=(-1, -1, 2, 4),
            stage_spec=('L', 'S', 'LD', 'SD'))),
    neck=dict(in_channels=[16, 32, 64, 128]))
shapes = dict(
    data_root='{data}/', ann_file='annotations/instances_train.json', data_prefix=dict(img='images/training'),
    indices=2, metainfo=dict(classes=('circle', 'square', 'triangle', 'star')))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=shapes)
val_dataloader = val_cfg = val_evaluator = None
train_cfg = dict(max_epochs=1, val_interval=10)
default_hooks = dict(logger=dict(interval=1))
"""


@pytest.mark.slow
def test_train_py_of_mmdet(tmp_path):
    mim = Path(importlib.util.find_spec('mmdet').origin).parent / '.mim'
    make_shapes(tmp_path / 'shapes', num_train=2, num_val=1, size=96)
    config = tmp_path / 'maskrcnn_dat.py'
    config.write_text(CONFIG.format(mim=mim, data=tmp_path / 'shapes'))
    command = [sys.executable, str(mim / 'tools' / 'train.py'), str(config), '--work-dir', str(tmp_path / 'run')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()
