_base_ = [
    '_base_/backbones/dat_b.py',
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_224.py',
    '_base_/schedules/imagenet_300e.py',
    '_base_/default_runtime/mmpretrain.py',
]

model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.5), head=dict(in_channels=_base_.channels[-1]))

optim_wrapper = dict(optimizer=dict(lr=8e-4), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(_base_.param_scheduler[0], warmup=50 / _base_.max_epochs, warmup_ratio=0.00125, eta_min_ratio=0.0125)
]
