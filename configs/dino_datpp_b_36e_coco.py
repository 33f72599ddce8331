# Not from the papers: the recipe of mmdet for Swin.
_base_ = [
    '_base_/backbones/datpp_b.py',
    '_base_/models/dino.py',
    '_base_/datasets/coco_detection_dino.py',
    '_base_/schedules/coco_36e_dino.py',
    '_base_/default_runtime/mmdet.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.2), neck=dict(in_channels=_base_.channels[1:]))
