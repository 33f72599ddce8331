# The same with a Swin of the nano DAT's size, to compare with.
_base_ = 'upernet_datnano_shapes.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=8,
        drop_path_rate=0.0,
    )
)
custom_hooks = []
