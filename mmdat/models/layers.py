"""Layers on NCHW maps that work on the channels, in whatever memory layout the map has.

Inside the network maps are channels-last in memory, where these layers need no copies.
"""

from typing import Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of an NCHW map; the result is channels-last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Linear2d(nn.Linear):
    """A linear map of the channels of an NCHW map, that is, a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLP(nn.Module):
    """The MLP of a block: two linear layers with GELU between them, on an NCHW map.

    Args:
        dim: Channels.
        ratio: Hidden channels per channel.
        drop_rate: Dropout after both layers.
        conv: Add a depthwise 3x3 convolution of the hidden map to it, before GELU (DAT++).
    """

    def __init__(self, dim: int, ratio: float = 4, drop_rate: float = 0.0, conv: bool = False):
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = Linear2d(dim, hidden)
        self.dwconv = depthwise_conv(hidden) if conv else None
        self.fc2 = Linear2d(hidden, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.dwconv is not None:
            # The official order: dropout, then the convolution, then GELU.
            x = self.drop(x)
            x = F.gelu(x + self.dwconv(x))
        else:
            x = self.drop(F.gelu(x))
        return self.drop(self.fc2(x))


def depthwise_conv(dim: int, kernel_size: int = 3, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(dim, dim, kernel_size, stride, padding, groups=dim)


def crop(x: Tensor, height: Union[int, torch.SymInt], width: Union[int, torch.SymInt]) -> Tensor:
    """The first rows and columns of an NCHW map, ``(B, C, height, width)``."""
    if isinstance(height, torch.SymInt):
        # Exported for any size: a slice that cuts nothing off is contiguous, others are not, and PyTorch would bind the
        # program to one of the two.
        rows, cols = [torch.arange(side, device=x.device) for side in (height, width)]
        return x.index_select(2, rows).index_select(3, cols)
    return x[:, :, :height, :width]


def check_heads(channels: int, num_heads: int) -> None:
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f'num_heads={num_heads} does not divide in_channels={channels}')
