# Fine-tuning at another resolution: 30 epochs at 512 images per batch, no warm-up. The learning rate is the config's.
_base_ = 'adamw.py'

optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-8), paramwise_cfg=dict(bias_decay_mult=0.0), clip_grad=dict(max_norm=5.0)
)

train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(enable=False, base_batch_size=512)
