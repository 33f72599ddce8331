# Trains any config for ImageNet on images of your own in a folder per class.
#
#   python tools/train.py configs/dat_t_300e_in1k.py --override configs/own_data/class_folders.py \
#       --data my_data
#
#   my_data/
#     train/CLASS/…, val/CLASS/…                      the images
data_root = 'data/own'  # what --data replaces
classes_from = 'class_folders'
val_fraction = None  # the part of the training images that is held back for validation, such as 0.1
val_seed = 0  # which images these are

val_evaluator = dict(topk=(1,))  # there may be fewer than five classes
test_evaluator = val_evaluator
