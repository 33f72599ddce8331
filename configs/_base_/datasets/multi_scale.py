# The multi-scale training of DETR and Sparse R-CNN: either resize, or resize, crop and resize again.
multi_scale_sizes = [(short, 1333) for short in range(480, 801, 32)]
multi_scale = dict(
    type='RandomChoice',
    transforms=[
        [
            dict(type='RandomChoiceResize', scales=multi_scale_sizes, keep_ratio=True),
        ],
        [
            dict(type='RandomChoiceResize', scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
            dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True),
            dict(type='RandomChoiceResize', scales=multi_scale_sizes, keep_ratio=True),
        ],
    ],
)
