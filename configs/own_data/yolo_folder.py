# Trains a config for COCO on a dataset of your own in the format of YOLO (needs pip install ".[data]"): one of boxes,
# or where all objects have polygons also one of masks.
#
#   python tools/train.py configs/retinanet_dat_t_1x_coco.py --override configs/own_data/yolo_folder.py --data my_data
#
#   my_data/
#     images/train/NAME.jpg, images/val/…
#     labels/train/NAME.txt, labels/val/…             a line per object: class, x and y of the centre, width, height; or
#                                                     class, x1, y1, x2, y2, x3, y3, …, all as fractions of the image
#     data.yaml or classes.txt                        the names of the classes
data_root = 'data/own'  # what --data replaces; of all of the following
classes_from = 'yolo'
val_fraction = None  # the part of the training images that is held back for validation, such as 0.1
val_seed = 0  # which images these are

train_dataloader = dict(dataset=dict(ann_file='labels/train', data_prefix=dict(img='images/train/')))
val_dataloader = dict(dataset=dict(ann_file='labels/val', data_prefix=dict(img='images/val/')))
test_dataloader = val_dataloader
