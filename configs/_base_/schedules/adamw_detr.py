# AdamW for heads with learned queries: the backbone at a tenth of the learning rate, no weight decay on norms, on
# position-bias tables and on learned embeddings.
_base_ = 'adamw.py'

# A custom key overrules norm_decay_mult, and the longest key wins: so the backbone's norms are named.
backbone_norms = [
    'backbone.stem.1',
    'backbone.stem.4',
    'backbone.downsamples.0.1',
    'backbone.downsamples.1.1',
    'backbone.downsamples.2.1',
    'backbone.norm',
    '.norm1.weight',
    '.norm1.bias',
    '.norm2.weight',
    '.norm2.bias',
    '.offset_net.1.',
]
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'relative_position_bias_table': dict(lr_mult=0.1),
            **{key: dict(lr_mult=0.1, decay_mult=0.0) for key in backbone_norms},
            'query_embed': dict(decay_mult=0.0),
            'query_feat': dict(decay_mult=0.0),
            'level_embed': dict(decay_mult=0.0),
        }
    )
)
