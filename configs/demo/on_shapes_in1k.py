# Runs any config for ImageNet-1K on the demo shapes, for a look at whether it works: 4 iterations and an evaluation,
# in minutes on a CPU. Nothing else of the config changes.
#
#   python tools/make_shapes.py
#   python tools/train.py configs/dat_t_300e_in1k.py --override configs/demo/on_shapes_in1k.py
classes = ('circle', 'square', 'star', 'triangle')  # in the order of their folders
num_classes = len(classes)  # of the head, and for Mixup

dataset = dict(data_root='data/shapes/classification', metainfo=dict(classes=classes), indices=8)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader

val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(logger=dict(interval=1))
