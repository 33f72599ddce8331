# Starts from the 224x224 classifier, head included: give it as load_from (an official file after
# tools/convert_checkpoint.py).
_base_ = [
    '_base_/backbones/datpp_b.py',
    '_base_/models/classifier.py',
    '_base_/datasets/imagenet_384_no_crop.py',
    '_base_/schedules/imagenet_30e.py',
    '_base_/default_runtime/mmpretrain.py',
]

# The position-bias tables keep their size for 224x224 (img_size), as in the authors' run.
model = dict(backbone=dict(arch=_base_.arch, drop_path_rate=0.6), head=dict(in_channels=_base_.channels[-1]))

optim_wrapper = dict(optimizer=dict(lr=2e-5))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=_base_.train_cfg.max_epochs,
        convert_to_iter_based=True,
    )
]
