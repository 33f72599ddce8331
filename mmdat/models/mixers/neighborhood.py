"""Mixer N: attention to the neighbourhood of each pixel."""

import torch.nn as nn
from torch import Tensor

from mmdat.ops import check_implementation, neighborhood_attention
from mmdat.ops.checks import check_channels, sizes_are_numbers

from ..layers import bias_table, channelwise, check_heads, crop, pad_to


class NeighborhoodAttention(nn.Module):
    """Attention of each pixel to the ``kernel_size**2`` pixels around it (mixer N; NAT, section 3).

    A map smaller than the kernel is padded with zeros at the right and the bottom.

    Args:
        in_channels: Channels of the map, before and after.
        num_heads: Heads; divides ``in_channels``.
        kernel_size: Odd side of the neighbourhood in pixels of the map.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after the output projection.
        impl: ``'fast'``, ``'naive'``, ``'tiled'`` or ``'triton'``; see :func:`mmdat.ops.neighborhood_attention`.

    Raises:
        ValueError: If ``num_heads`` does not divide ``in_channels``, ``kernel_size`` is even or ``impl`` unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        kernel_size: int = 7,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        impl: str = 'fast',
    ):
        super().__init__()
        check_heads(in_channels, num_heads)
        check_implementation(impl)
        if kernel_size % 2 == 0:
            raise ValueError(
                f'the neighbourhood needs an odd kernel_size (window_size of the backbone), got {kernel_size}'
            )
        self.in_channels = in_channels
        self.num_heads = num_heads
        self.kernel_size = kernel_size
        self.attn_drop_rate = attn_drop_rate
        self.impl = impl
        self.qkv = nn.Linear(in_channels, 3 * in_channels)
        self.proj_out = nn.Linear(in_channels, in_channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        side = 2 * kernel_size - 1
        self.relative_position_bias_table = bias_table(num_heads, side, side, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``, for any height and width."""
        if sizes_are_numbers():
            check_channels('x', x, self.in_channels)
        height, width = x.shape[2:]
        x = pad_to(x, self.kernel_size, self.kernel_size)
        query, key, value = channelwise(self.qkv, x).chunk(3, 1)
        x = neighborhood_attention(
            query,
            key,
            value,
            self.relative_position_bias_table,
            self.num_heads,
            self.kernel_size,
            self.attn_drop_rate if self.training else 0.0,
            self.impl,
        )
        return self.proj_drop(channelwise(self.proj_out, crop(x, height, width)))
