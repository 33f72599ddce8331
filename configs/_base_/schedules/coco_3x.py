# 36 epochs of COCO.
_base_ = 'coco_1x.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(type='MultiStepLR', by_epoch=True, milestones=[27, 33], gamma=0.1),
]
