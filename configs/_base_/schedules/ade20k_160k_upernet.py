_base_ = 'adamw_segmentation.py'

optim_wrapper = dict(optimizer=dict(lr=6e-5, weight_decay=0.01))

max_iters = 160000
warmup_iters = 1500
param_scheduler = [
    # Both count from 0: the warm-up is laid over the decay. MMEngine reaches the last value in iteration end - 1.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup_iters + 1),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=max_iters + 1),
]

train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=16000)
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
