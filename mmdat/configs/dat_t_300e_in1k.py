"""The whole recipe of configs/dat_t_300e_in1k.py."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.imagenet_224 import *
    from ._base_.default_runtime.mmpretrain import *
    from ._base_.models.classifier import *
    from .backbones import dat_t, dat_t_channels
    from .optimizers import adamw as optim_wrapper

model.merge(dict(backbone=dict(**dat_t, drop_path_rate=0.2), head=dict(in_channels=dat_t_channels[-1])))

optim_wrapper.optimizer.update(lr=1e-3)
optim_wrapper.paramwise_cfg.update(bias_decay_mult=0.0)
optim_wrapper.update(clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(enable=False, base_batch_size=1024)
