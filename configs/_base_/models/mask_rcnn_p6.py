# Mask R-CNN of DAT++: the fifth level of the FPN is a trained convolution with stride 2, in place of a max pooling.
_base_ = 'mask_rcnn.py'

model = dict(neck=dict(add_extra_convs='on_input'))
