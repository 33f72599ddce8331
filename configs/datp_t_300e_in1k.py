# Not from the papers: DAT+ is a config of the authors' repository, without a published figure.
_base_ = [
    '_base_/backbones/datp_t.py',
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/default_runtime/mmpretrain.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.2), head=dict(in_channels=_base_.channels[-1]))
