_base_ = [
    '_base_/backbones/dat_t.py',
    '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_80k_semantic_fpn.py',
    '_base_/default_runtime/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch=_base_.arch, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.channels),
)
