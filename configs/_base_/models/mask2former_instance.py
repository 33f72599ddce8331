# Mask2Former for the 80 classes of COCO instances.
_base_ = 'mask2former_panoptic.py'

num_things_classes = 80
num_stuff_classes = 0

model = dict(
    data_preprocessor=dict(pad_seg=False),
    panoptic_head=dict(
        num_things_classes=num_things_classes,
        num_stuff_classes=num_stuff_classes,
        loss_cls=dict(class_weight=[1.0] * (num_things_classes + num_stuff_classes) + [0.1]),
    ),
    panoptic_fusion_head=dict(num_things_classes=num_things_classes, num_stuff_classes=num_stuff_classes),
    test_cfg=dict(panoptic_on=False),
)
