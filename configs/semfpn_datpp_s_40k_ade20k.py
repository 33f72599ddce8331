_base_ = [
    '_base_/backbones/datpp_s.py',
    '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_40k_semantic_fpn.py',
    '_base_/default_runtime/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch=_base_.arch, drop_path_rate=0.4),
    neck=dict(in_channels=_base_.channels),
)

train_dataloader = dict(batch_size=_base_.auto_scale_lr.base_batch_size // 8)  # per GPU
