# DAT++: twice the batch and the learning rate, half the iterations.
_base_ = 'ade20k_80k_semantic_fpn.py'

optim_wrapper = dict(optimizer=dict(lr=2e-4))

max_iters = 40000
param_scheduler = [dict(_base_.param_scheduler[0], end=max_iters + 1)]

train_cfg = dict(max_iters=max_iters, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))

auto_scale_lr = dict(base_batch_size=32)
