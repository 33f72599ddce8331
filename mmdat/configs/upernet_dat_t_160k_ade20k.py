"""The whole recipe of configs/upernet_dat_t_160k_ade20k.py."""

from mmengine.config import read_base

with read_base():
    from ._base_.datasets.ade20k import *
    from ._base_.default_runtime.mmseg import *
    from ._base_.models.upernet import *
    from .backbones import dat_t, dat_t_channels
    from .optimizers import adamw as optim_wrapper

model.merge(
    dict(
        data_preprocessor=dict(size=crop_size),
        backbone=dict(**dat_t, drop_path_rate=0.3),
        decode_head=dict(in_channels=dat_t_channels),
        auxiliary_head=dict(in_channels=dat_t_channels[2]),
    )
)

optim_wrapper.optimizer.update(lr=6e-5, weight_decay=0.01)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=16000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
auto_scale_lr = dict(enable=False, base_batch_size=16)
