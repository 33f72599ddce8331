"""mmcv's operators on torchvision and PyTorch, with the names, arguments and results of the compiled ``mmcv._ext``.

As there, an operator writes into the tensors that it gets for its results. Each works on any device that PyTorch and
torchvision work on. Half-precision tensors are computed with in float32, and results rounded once, at the end.
"""

from .attention import ms_deform_attn_backward, ms_deform_attn_forward
from .boxes import bbox_overlaps, nms, nms_match, softnms
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .missing import get_compiler_version, get_compiling_cuda_version, missing_operator
from .psamask import psamask_backward, psamask_forward
from .roi import roi_align_backward, roi_align_forward, roi_pool_backward, roi_pool_forward
from .rotated import box_iou_rotated, nms_rotated, roi_align_rotated_backward, roi_align_rotated_forward
from .version import __version__

__all__ = [
    '__version__',
    'bbox_overlaps',
    'box_iou_rotated',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'missing_operator',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'nms_rotated',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_align_rotated_backward',
    'roi_align_rotated_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]
