"""Deformable convolution, versions 1 and 2 (Dai et al., 2017; Zhu et al., 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from .precision import full, gradients


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Version 1, written into ``output``.

    ``offset`` (b, 2 * deformable_group * kH * kW, h, w) moves each sample, y before x.

    Groups follow from the shapes; ``columns``, ``ones`` and ``im2col_step`` are not needed.
    """
    layout = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    output.copy_(deform_conv2d(full(input), full(offset), full(weight), **layout))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """The gradients of input and offset, written into the tensors for them."""
    layout = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    grads = gradients(lambda x, shift: deform_conv2d(x, shift, full(weight), **layout), (input, offset), grad_output)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """The gradient of the weight times ``scale``, added to ``grad_weight``."""
    layout = dict(stride=(dH, dW), padding=(padH, padW), dilation=(dilationH, dilationW))
    x, shift = full(input), full(offset)
    grads = gradients(
        lambda kernel: deform_conv2d(x, shift, kernel, **layout), (torch.zeros_like(grad_weight),), grad_output
    )
    grad_weight.add_(grads[0].to(grad_weight), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Version 2, written into ``output``.

    ``mask`` (b, deformable_group * kernel_h * kernel_w, h, w) weighs each sample.
    """
    layout = dict(stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))
    bias = full(bias) if with_bias else None
    offset, mask = [_front(full(x), output.shape[2:]) for x in (offset, mask)]
    output.copy_(deform_conv2d(full(input), offset, full(weight), bias, mask=mask, **layout))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """All five gradients, written into the tensors for them."""
    layout = dict(stride=(stride_h, stride_w), padding=(pad_h, pad_w), dilation=(dilation_h, dilation_w))

    def convolve(x: Tensor, kernel: Tensor, shift: Tensor, weights: Tensor) -> Tensor:
        shift, weights = [_front(x, grad_output.shape[2:]) for x in (shift, weights)]
        return deform_conv2d(x, shift, kernel, mask=weights, **layout)

    grads = gradients(convolve, (input, weight, offset, mask), grad_output)
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads):
        target.copy_(grad)
    if with_bias:
        grad_bias.copy_(full(grad_output).sum((0, 2, 3)))


def _front(values: Tensor, size: Sequence[int]) -> Tensor:
    """Offsets or masks of another size than the output, as compiled mmcv reads them: the front of each image's memory.

    mmdet's DyHead passes those of a larger map, and its trained models rely on what comes of it.
    """
    if tuple(values.shape[2:]) == tuple(size):
        return values
    count = values.shape[1] * size[0] * size[1]
    return values.flatten(1)[:, :count].unflatten(1, (values.shape[1], *size))
