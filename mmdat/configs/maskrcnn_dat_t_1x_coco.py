"""The whole recipe of configs/maskrcnn_dat_t_1x_coco.py."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.coco_detection import *
    from ._base_.default_runtime.mmdet import *
    from ._base_.models.mask_rcnn import *
    from .backbones import dat_t, dat_t_channels
    from .coco_1x import *

model.merge(dict(backbone=dict(**dat_t, drop_path_rate=0.1), neck=dict(in_channels=dat_t_channels)))

# With masks.
train_pipeline[1].update(with_mask=True)
test_pipeline[2].update(with_mask=True)
train_dataloader.dataset.pipeline = train_pipeline
val_dataloader.dataset.pipeline = test_pipeline
test_dataloader = val_dataloader
val_evaluator.update(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
