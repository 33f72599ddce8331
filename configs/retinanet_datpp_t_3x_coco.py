_base_ = [
    '_base_/backbones/datpp_t.py',
    '_base_/models/retinanet.py',
    '_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_3x_retinanet.py',
    '_base_/default_runtime/mmdet.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.2), neck=dict(in_channels=_base_.channels[1:]))
