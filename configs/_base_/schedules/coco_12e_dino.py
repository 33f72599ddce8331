_base_ = 'adamw_detr.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4), clip_grad=dict(max_norm=0.1, norm_type=2))
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[11], gamma=0.1)]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=16)
