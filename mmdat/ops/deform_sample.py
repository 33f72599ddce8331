"""Sampling a feature map at deformed positions (DAT, section 3.2, eq. 3)."""

import math

import torch
from torch import Tensor

from . import bilinear
from .checks import check_axes, check_position, sizes_are_numbers

SAMPLERS = ('torch', 'mmcv')


def deform_sample(x: Tensor, position: Tensor, sampler: str = 'torch') -> Tensor:
    """Bilinear samples of a feature map, at positions of their own for each group of channels.

    Args:
        x: Feature map ``(B, C, H, W)``; or a signal ``(B, C, L)``, or a volume ``(B, C, D, H, W)``.
        position: ``(B or 1, G, Hk, Wk, 2)``, as (y, x) with -1 and 1 the centres of the first and last
            pixel (``align_corners=True``); ``G`` divides ``C``. Outside the map is zero. Of a signal,
            ``(B or 1, G, Lk, 1)``; of a volume, ``(B or 1, G, Dk, Hk, Wk, 3)`` as (z, y, x).
        sampler: ``'torch'`` for :func:`torch.nn.functional.grid_sample`, ``'mmcv'`` for mmcv's
            multi-scale deformable attention operator with one level and one point, which runs its
            CUDA kernel on a GPU, for maps only. Both give the same values and gradients.

    Returns:
        ``(B, C, Hk, Wk)``, or with the axes of the positions, in the dtype of ``x``; the positions are used in their
        own precision.

    Raises:
        ValueError: If ``sampler`` is unknown, or shapes do not go together.
    """
    check_axes('x', x)
    if sizes_are_numbers():
        check_position(position, x)
        if not math.prod(x.shape[2:]):
            raise ValueError(f'x has no pixels to sample, got shape {tuple(x.shape)}')
    batch, channels, *size = x.shape
    groups, *key_size = position.shape[1:-1]
    if channels % groups:
        raise ValueError(f'{groups} position groups do not divide the {channels} channels of x')
    if sampler == 'torch':
        sample = bilinear.sample
    elif sampler == 'mmcv':
        if len(size) != 2:
            raise ValueError(f"sampler='mmcv' is for maps (B, C, H, W), got shape {tuple(x.shape)}")
        sample = _sample_mmcv
    else:
        raise ValueError(f"sampler must be one of {SAMPLERS}, got '{sampler}'")
    grouped = x.reshape(batch * groups, channels // groups, *size).to(position.dtype)
    position = position.expand(batch, *position.shape[1:])
    sampled = sample(grouped, position.flatten(0, 1))  # (B * G, C / G, Hk, Wk), or with Hk * Wk as one
    return sampled.reshape(batch, channels, *key_size).to(x.dtype)


def _sample_mmcv(x: Tensor, position: Tensor) -> Tensor:
    # The operator wants values as (batch, pixels, heads, channels) and locations as (x, y) in
    # [0, 1] over the *area* of the map (align_corners=False): pixel i has its centre at (i + 0.5) / size.
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

    height, width = x.shape[-2:]
    size = position.new_tensor([width, height])
    location = ((position.flip(-1) + 1) / 2 * (size - 1) + 0.5) / size
    location = location.reshape(len(x), -1, 1, 1, 1, 2)
    value = x.flatten(2).transpose(1, 2).unsqueeze(2).contiguous()
    shapes = torch.tensor([[height, width]], device=x.device)
    weight = torch.ones_like(location[..., 0])
    if x.is_cuda:
        level_start = torch.zeros(1, dtype=torch.long, device=x.device)
        out = MultiScaleDeformableAttnFunction.apply(value, shapes, level_start, location, weight, len(x))
    else:
        out = multi_scale_deformable_attn_pytorch(value, shapes, location, weight)
    return out.transpose(1, 2)
