# Trains any config of boxes for COCO on a dataset of your own in the format of PASCAL VOC. The classes are the names of
# the training objects. It needs pip install ".[data]".
#
#   python tools/train.py configs/retinanet_dat_t_1x_coco.py --override configs/own_data/voc_folder.py --data my_data
#
#   my_data/
#     JPEGImages/                                     the images
#     Annotations/NAME.xml
#     ImageSets/Main/train.txt, val.txt               a NAME per line
#
# Where there are no such lists, ann_file may name a folder of XML files: train_dataloader.dataset.ann_file=train/
data_root = 'data/own'  # what --data replaces; of all of the following
classes_from = 'voc'
val_fraction = None  # the part of the training images that is held back for validation, such as 0.1
val_seed = 0  # which images these are

places = dict(img='JPEGImages/', ann='Annotations/')
train_dataloader = dict(dataset=dict(ann_file='ImageSets/Main/train.txt', data_prefix=places))
val_dataloader = dict(dataset=dict(ann_file='ImageSets/Main/val.txt', data_prefix=places))
test_dataloader = val_dataloader
