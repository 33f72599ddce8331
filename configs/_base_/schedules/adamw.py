# AdamW of both papers: no weight decay on norms and on position-bias tables.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', betas=(0.9, 0.999)),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)}),
)
