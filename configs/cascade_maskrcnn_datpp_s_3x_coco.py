_base_ = [
    '_base_/backbones/datpp_s.py',
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_3x.py',
    '_base_/default_runtime/mmdet.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.5), neck=dict(in_channels=_base_.channels))
