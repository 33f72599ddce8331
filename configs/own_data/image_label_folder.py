# Trains any config for ADE20K on images and label maps of your own: PNGs with the number of a class at each pixel, from
# 0 on, and 255 for what belongs to none.
#
#   python tools/train.py configs/upernet_dat_t_160k_ade20k.py --override configs/own_data/image_label_folder.py \
#       --data my_data
#
#   my_data/
#     images/train/NAME.jpg, images/val/…             any suffix, one for all
#     labels/train/NAME.png, labels/val/…
#     classes.txt                                     a name per line; without it the labels are counted
data_root = 'data/own'  # what --data replaces; of all of the following
classes_from = 'label_maps'
# Options, such as --cfg-options label_map=0:0,255:1
val_fraction = None  # the part of the training images that is held back for validation, such as 0.1
val_seed = 0  # which images these are
reduce_zero_label = False  # True: labels start at 1, and 0 marks what belongs to none
label_map = {}  # values of the maps and the labels that they become, '0:0,100:1,200:2'; other values stay

dataset = dict(img_suffix=None, seg_map_suffix='.png', reduce_zero_label=False)
train_dataloader = dict(dataset=dict(**dataset, data_prefix=dict(img_path='images/train', seg_map_path='labels/train')))
val_dataloader = dict(dataset=dict(**dataset, data_prefix=dict(img_path='images/val', seg_map_path='labels/val')))
test_dataloader = val_dataloader
