# 300 epochs of ImageNet-1K at 1024 images per batch.
_base_ = 'adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(bias_decay_mult=0.0), clip_grad=dict(max_norm=5.0)
)

max_epochs = 300
param_scheduler = [
    # The start and the end are given as ratios so that they follow --auto-scale-lr.
    dict(
        type='mmdat.WarmupCosineLR',
        warmup=20 / max_epochs,
        warmup_ratio=1e-3,
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        convert_to_iter_based=True,
    )
]

train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(enable=False, base_batch_size=1024)
