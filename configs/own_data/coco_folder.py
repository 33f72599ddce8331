# Trains any config for COCO on a dataset of your own in COCO format; the classes are those of its annotations.
#
#   python tools/train.py configs/maskrcnn_dat_t_1x_coco.py --override configs/own_data/coco_folder.py \
#       --data my_data
#
#   my_data/
#     annotations/train.json, annotations/val.json
#     train/, val/                                    the images
data_root = 'data/own'  # what --data replaces; of all of the following
classes_from = 'coco'
val_fraction = None  # the part of the training images that is held back for validation, such as 0.1
val_seed = 0  # which images these are

train_dataloader = dict(dataset=dict(ann_file='annotations/train.json', data_prefix=dict(img='train/')))
val_dataloader = dict(dataset=dict(ann_file='annotations/val.json', data_prefix=dict(img='val/')))
test_dataloader = val_dataloader
