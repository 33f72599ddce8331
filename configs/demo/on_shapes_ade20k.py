# Runs any config for ADE20K on the demo shapes, for a look at whether it works: 4 iterations and an evaluation, in
# minutes on a CPU. Nothing else of the config changes.
#
#   python tools/make_shapes.py
#   python tools/train.py configs/upernet_dat_t_160k_ade20k.py --override configs/demo/on_shapes_ade20k.py
data_root = 'data/shapes/'
classes = ('background', 'circle', 'square', 'triangle', 'star')
palette = [[120, 120, 120], [230, 60, 60], [60, 160, 230], [90, 200, 80], [240, 200, 50]]
num_classes = len(classes)  # of every head of the model
scale = (160, 160)
crop_size = (128, 128)

model = dict(data_preprocessor=dict(size=crop_size))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]

# ADE20KDataset accepts no other classes; this is its base class, with the same layout of files.
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(**dataset, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(**dataset, indices=8, pipeline=test_pipeline)
)
test_dataloader = val_dataloader

train_cfg = dict(max_iters=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
