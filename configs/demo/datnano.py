# DATs small enough to learn the demo shapes (tools/make_shapes.py) on two CPU cores within minutes.
data_root = 'data/shapes/'
image_size = 128

# Two windows of 8 span stage 3, and four of them stage 2, without padding; N needs an odd window.
datnano = dict(
    type='mmdat.DAT',
    arch=dict(
        generation='dat',
        dims=(32, 64, 128, 256),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 4, 8),
        groups=(-1, -1, 2, 4),
        stage_spec=('L', 'S', 'LD', 'D'),
    ),
    img_size=image_size,
    window_size=8,
)
datppnano = dict(
    type='mmdat.DAT',
    arch=dict(
        generation='dat++',
        dims=(32, 64, 128, 256),
        depths=(1, 1, 2, 1),
        heads=(1, 2, 4, 8),
        groups=(1, 1, 2, 4),
        stage_spec=('N', 'D', 'ND', 'D'),
    ),
    img_size=image_size,
    window_size=7,
)
