"""AdamW of the papers' COCO recipe: no weight decay on norms and on position-bias tables."""

adamw = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)}),
)
