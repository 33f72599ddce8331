# 50 epochs of COCO at 16 images per batch, counted in iterations.
_base_ = 'adamw_detr.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=0.05), clip_grad=dict(max_norm=0.01, norm_type=2))
param_scheduler = [dict(type='MultiStepLR', by_epoch=False, milestones=[327778, 355092], gamma=0.1)]

max_iters = 368750
interval = 5000
train_cfg = dict(
    type='IterBasedTrainLoop',
    max_iters=max_iters,
    val_interval=interval,
    # After the last full interval, once more at the very end.
    dynamic_intervals=[(max_iters // interval * interval + 1, max_iters)],
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=16)
