# Not from the papers: the recipe of mmdet for Swin.
_base_ = [
    '_base_/backbones/datpp_t.py',
    '_base_/models/mask2former_instance.py',
    '_base_/datasets/coco_instance_lsj.py',
    '_base_/schedules/coco_50e_mask2former.py',
    '_base_/default_runtime/mmdet_iterations.py',
]

model = dict(
    data_preprocessor=dict(batch_augments=_base_.batch_augments),
    backbone=dict(arch=_base_.arch, drop_path_rate=0.3),
    panoptic_head=dict(in_channels=_base_.channels),
)
