"""The whole recipe of configs/retinanet_dat_t_1x_coco.py."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.coco_detection import *
    from ._base_.default_runtime.mmdet import *
    from ._base_.models.retinanet import *
    from .backbones import dat_t, dat_t_channels
    from .coco_1x import *

model.merge(dict(backbone=dict(**dat_t, drop_path_rate=0.1), neck=dict(in_channels=dat_t_channels[1:])))
optim_wrapper.optimizer.update(lr=5e-5)
