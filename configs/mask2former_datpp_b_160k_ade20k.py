# Not from the papers: the recipe of mmsegmentation for Swin.
_base_ = [
    '_base_/backbones/datpp_b.py',
    '_base_/models/mask2former_semantic.py',
    '_base_/datasets/ade20k_640.py',
    '_base_/schedules/ade20k_160k_mask2former.py',
    '_base_/default_runtime/mmseg.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch=_base_.arch, drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.channels),
)
