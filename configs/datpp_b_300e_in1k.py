_base_ = [
    '_base_/backbones/datpp_b.py',
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/default_runtime/mmpretrain.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.7), head=dict(in_channels=_base_.channels[-1]))
