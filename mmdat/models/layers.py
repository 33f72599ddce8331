"""What blocks are made of. Maps are NCHW at every border, whatever their layout in memory.

What takes maps takes signals ``(B, C, L)`` and volumes ``(B, C, D, H, W)``, too, where it says "of any axes".

Linear layers and layer norms are PyTorch's own, which work on the last dimension: :func:`channelwise` applies them to
the channels of a map. Inside the network maps are channels-last in memory, where that needs no copies.
"""

from collections.abc import Sequence
from typing import Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import at_least

Axes = Sequence[int]
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def per_axis(value: Union[int, Axes], dims: int, name: str) -> tuple[int, ...]:
    """A number for each of ``dims`` axes, given as one for all or one for each.

    Raises:
        ValueError: For another count of numbers, or numbers below 1, naming the argument.
    """
    values = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(values) != dims:
        raise ValueError(f'{name} must be a number or {dims} numbers, one per axis, got {value}')
    if min(values) < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')
    return values


def channelwise(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer that works on the last dimension to the channels of an NCHW map, or of one of any axes.

    Returns:
        An NCHW map, channels-last in memory.
    """
    last = x.dim() - 1  # PyTorch's older ONNX exporter writes a -1 as it is, which is no axis there
    return layer(x.movedim(1, last)).movedim(last, 1)


class ConvNorm(nn.ModuleList):
    """Convolution and layer norm: the stem of DAT, and the downsampling between stages."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__([conv, nn.LayerNorm(conv.out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self
        return channelwise(norm, conv(x))


class ConvStem(nn.ModuleList):
    """Two overlapping convolutions of stride 2, each with layer norm, GELU between them: the stem of DAT++."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__(
            [
                nn.Conv2d(in_channels, dim // 2, 3, 2, 1),
                nn.LayerNorm(dim // 2),
                nn.GELU(),
                nn.Conv2d(dim // 2, dim, 3, 2, 1),
                nn.LayerNorm(dim),
            ]
        )
        match_strides(self[0].weight)

    def forward(self, x: Tensor) -> Tensor:
        conv1, norm1, act, conv2, norm2 = self
        return channelwise(norm2, conv2(act(channelwise(norm1, conv1(x)))))


def make_stem(in_channels: int, dim: int, conv_stem: bool) -> nn.Module:
    """Stride 4: one projection of patches (DAT) or two overlapping convolutions (DAT++)."""
    if conv_stem:
        return ConvStem(in_channels, dim)
    conv = nn.Conv2d(in_channels, dim, 4, 4)
    match_strides(conv.weight)
    return ConvNorm(conv)


def make_downsample(dim_in: int, dim_out: int, conv_stem: bool) -> nn.Module:
    """Stride 2: patches that do not overlap (DAT), or do (DAT++)."""
    kernel, padding = (3, 1) if conv_stem else (2, 0)
    return ConvNorm(nn.Conv2d(dim_in, dim_out, kernel, 2, padding, bias=False))


class MLP(nn.Module):
    """The MLP of a block: two linear layers with GELU between them, on an NCHW map.

    Args:
        dim: Channels; the hidden map has four times as many.
        drop_rate: Dropout after both layers.
        conv_mlp: Add a depthwise 3x3 convolution of the hidden map to it, before GELU (DAT++).
    """

    def __init__(self, dim: int, drop_rate: float = 0.0, conv_mlp: bool = False):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.dwconv = depthwise_conv(4 * dim) if conv_mlp else None
        self.fc2 = nn.Linear(4 * dim, dim)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = channelwise(self.fc1, x)
        if self.dwconv is not None:
            # The official order: dropout, then the convolution, then GELU.
            x = self.drop(x)
            x = F.gelu(x + self.dwconv(x))
        else:
            x = self.drop(F.gelu(x))
        return self.drop(channelwise(self.fc2, x))


class DropPath(nn.Module):
    """Stochastic depth: in training, leave a branch out for some images and scale it for the others.

    Args:
        drop_prob: Probability that an image of the batch goes without the branch.
    """

    def __init__(self, drop_prob: float = 0.0):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        keep_prob = 1 - self.drop_prob
        scale = x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep_prob) / keep_prob
        return x * scale

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob}'


def depthwise_conv(
    dim: int, kernel_size: Axes = (3, 3), stride: Union[int, Axes] = 1, padding: Union[int, Axes] = 1
) -> nn.Module:
    """A convolution with a filter per channel, of as many axes as its kernel."""
    conv = CONVOLUTIONS[len(kernel_size)](dim, dim, kernel_size, stride, padding, groups=dim)
    match_strides(conv.weight)
    return conv


def bias_table(*shape: int, std: float) -> nn.Parameter:
    """A table of position biases, drawn from a truncated normal distribution."""
    table = nn.Parameter(torch.empty(shape))
    nn.init.trunc_normal_(table, std=std)
    match_strides(table)
    return table


def match_strides(parameter: nn.Parameter) -> None:
    """Give gradients the strides of the parameter where a side of one leaves these open.

    So it is for the weights of depthwise convolutions, ``(C, 1, k, k)``, which PyTorch cannot tell from channels-last
    ones. The values are in the right order, but DistributedDataParallel warns that "grad strides do not match bucket
    view strides" and copies them.
    """
    if 1 in parameter.shape:
        parameter.register_hook(lambda grad: grad.flatten().view(grad.shape))


def pad_to(x: Tensor, *size: int) -> Tensor:
    """Fill an NCHW map up with zeros, at the right and the bottom, to at least this size; or one of any axes."""
    missing = [at_least(least - side, 0) for least, side in zip(size, x.shape[2:])]
    return F.pad(x, [pad for side in reversed(missing) for pad in (0, side)])


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
