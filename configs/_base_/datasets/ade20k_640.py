# ADE20K, 150 classes, as mmsegmentation's Mask2Former trains Swin-B: crops of 640x640 and short sides from 320 to 1280.
_base_ = 'ade20k_short_side.py'

crop_size = (640, 640)
scale = (2560, 640)

train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(_base_.train_pipeline[2], scales=[int(640 * tenths * 0.1) for tenths in range(5, 21)], max_size=2560),
    dict(_base_.train_pipeline[3], crop_size=crop_size),
    *_base_.train_pipeline[4:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(_base_.test_pipeline[1], scale=scale),
    *_base_.test_pipeline[2:],
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=tuple(int(ratio * side) for side in scale), keep_ratio=True)
                for ratio in _base_.tta_ratios
            ],
            *_base_.tta_pipeline[1].transforms[1:],
        ],
    ),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
