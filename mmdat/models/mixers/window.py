"""Mixers L and S: attention within windows, and within shifted windows."""

import math

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmdat.ops import check_implementation, window_attention
from mmdat.ops.checks import check_channels, sizes_are_numbers

from ..layers import bias_table, channelwise, check_heads, crop


class WindowAttention(nn.Module):
    """Attention within non-overlapping windows (mixer L; Swin, section 3.2).

    A map whose sides are no multiples of the window is padded with zeros at the right and the
    bottom, as in Swin.

    Args:
        in_channels: Channels of the map, before and after.
        num_heads: Heads; divides ``in_channels``.
        window_size: Side of the windows in pixels of the map.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after the output projection.
        impl: ``'fast'``, ``'naive'``, ``'tiled'`` or ``'triton'``; see :func:`mmdat.ops.window_attention`.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_channels`` or ``impl`` is unknown.
    """

    shift = 0

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        window_size: int = 7,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        impl: str = 'fast',
    ):
        super().__init__()
        check_heads(in_channels, num_heads)
        check_implementation(impl)
        self.impl = impl
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.window_size = window_size
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(in_channels, 3 * in_channels)
        self.proj_out = nn.Linear(in_channels, in_channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self.relative_position_bias_table = bias_table((2 * window_size - 1) ** 2, num_heads, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``, for any height and width."""
        if sizes_are_numbers():
            check_channels('x', x, self.in_channels)
        height, width = x.shape[2:]
        # Whole windows, rounded up; torch.export follows this form for any size, but not ``-width % window_size``.
        rows, cols = [(side + self.window_size - 1) // self.window_size for side in (height, width)]
        x = F.pad(x, (0, cols * self.window_size - width, 0, rows * self.window_size - height))
        query, key, value = channelwise(self.qkv, x).chunk(3, 1)
        x = window_attention(
            query,
            key,
            value,
            self.relative_position_bias_table,
            self.num_heads,
            self.window_size,
            self.shift,
            self.attn_drop_rate if self.training else 0.0,
            self.impl,
        )
        return self.proj_drop(channelwise(self.proj_out, crop(x, height, width)))


class ShiftedWindowAttention(WindowAttention):
    """Attention within windows shifted by half a window, rounded up (mixer S).

    Swin rounds down; the released DAT weights were trained with ``ceil(window_size / 2)``.
    """

    def __init__(self, in_channels: int, num_heads: int, window_size: int = 7, **kwargs):
        super().__init__(in_channels, num_heads, window_size, **kwargs)
        self.shift = math.ceil(window_size / 2)
