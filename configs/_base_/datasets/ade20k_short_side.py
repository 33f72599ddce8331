# ADE20K, 150 classes, as Mask2Former trains: one of 16 short sides from 256 to 1024.
_base_ = 'ade20k.py'

train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(
        type='RandomChoiceResize',
        scales=[int(512 * tenths * 0.1) for tenths in range(5, 21)],
        resize_type='ResizeShortestEdge',
        max_size=2048,
    ),
    *_base_.train_pipeline[3:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
