# For schedules counted in iterations.
_base_ = 'mmdet.py'

default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, save_last=True, max_keep_ckpts=3, interval=5000),
)
log_processor = dict(by_epoch=False)
