# RetinaNet takes half the learning rate of Mask R-CNN.
_base_ = 'coco_3x.py'

optim_wrapper = dict(optimizer=dict(lr=0.5 * _base_.optim_wrapper.optimizer.lr))
