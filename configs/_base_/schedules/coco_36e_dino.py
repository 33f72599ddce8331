_base_ = 'coco_12e_dino.py'

train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, milestones=[27, 33], gamma=0.1)]
