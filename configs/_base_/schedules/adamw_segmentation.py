# AdamW of both papers for segmentation: the norms of the heads decay, those of the backbone do not.
_base_ = 'adamw.py'

# A custom key overrules norm_decay_mult.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'decode_head': dict(decay_mult=1.0), 'auxiliary_head': dict(decay_mult=1.0)})
)
