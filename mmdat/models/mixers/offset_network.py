"""Where deformable attention samples: the offset network (DAT, section 3.2)."""

from typing import NamedTuple, Optional, Union

import torch
import torch.nn as nn
from torch import Tensor

from ..layers import Axes, depthwise_conv, pad_to, per_axis
from .coordinates import CONVENTIONS, divisor, reference_points


class SamplingPoints(NamedTuple):
    """What one deformable layer looked at in one forward pass; all (y, x), -1 and 1 the borders.

    Of a signal it is (x,), with ``Lk`` in place of ``Hk, Wk``; of a volume (z, y, x), with ``Dk, Hk, Wk``.

    Attributes:
        offset: How far each point moved, ``(B, G, Hk, Wk, 2)``, after any range factor.
        reference: Where the points start, ``(Hk, Wk, 2)``; the same for all images and groups.
        position: Where the map was sampled, ``(B, G, Hk, Wk, 2)``.

    A layer with ``use_offsets=False`` gives the centres of the cells that it pools: one group, no offsets.
    """

    offset: Tensor
    reference: Tensor
    position: Tensor


class OffsetNetwork(nn.ModuleList):
    """From queries to sampling points: depthwise convolution, layer norm, GELU and a linear layer.

    The channels are cut into groups, whose points differ; all groups share the weights.

    Args:
        in_channels: Channels of the queries.
        groups: Offset groups; divides ``in_channels``.
        kernel_size: Kernel of the convolution; along each axis odd, or ``stride``.
        stride: Pixels of the map per sampling point. Both are a number, or one for each axis.
        offset_range: Offsets are ``tanh(.) * offset_range`` in units of half a key cell, and may leave
            the map. With None they are free, and positions are clamped to the map.
        convention: Where the points start, ``'dat'`` or ``'dat++'``; see :mod:`mmdat.models.mixers.coordinates`.
        dims: Axes: 1 for signals, 2 for maps, 3 for volumes.

    Raises:
        ValueError: For values that do not go together, naming the argument.
    """

    def __init__(
        self,
        in_channels: int,
        groups: int,
        kernel_size: Union[int, Axes] = 5,
        stride: Union[int, Axes] = 1,
        offset_range: Optional[float] = None,
        convention: str = 'dat++',
        dims: int = 2,
    ):
        kernels, strides = per_axis(kernel_size, dims, 'kernel_size'), per_axis(stride, dims, 'stride')
        if convention not in CONVENTIONS:
            raise ValueError(f"convention must be 'dat' or 'dat++', got '{convention}'")
        if any(k != s and k % 2 == 0 for k, s in zip(kernels, strides)):
            raise ValueError(f'kernel_size={kernel_size} is even; it must be odd, or equal stride={stride}')
        dim = in_channels // groups
        padding = tuple(0 if k == s else k // 2 for k, s in zip(kernels, strides))
        super().__init__(
            [
                depthwise_conv(dim, kernels, strides, padding),
                nn.LayerNorm(dim),
                nn.GELU(),
                nn.Linear(dim, dims, bias=False),
            ]
        )
        self.groups = groups
        self.offset_range = offset_range
        self.convention = convention
        #: Smallest map that the convolution takes; smaller ones are filled up to one key cell.
        self.min_size = tuple(s if k == s else 1 for k, s in zip(kernels, strides))

    def forward(self, query: Tensor) -> SamplingPoints:
        """Where to sample for the projected query ``(B, C, H, W)``, or of as many axes as there are.

        At least float32, also under autocast: half precision cannot tell pixels of a large map apart.
        """
        conv, norm, act, linear = self
        batch = query.shape[0]  # len() would fix it in an exported program
        if max(self.min_size) > 1:
            query = pad_to(query, *self.min_size)
        # PyTorch's older ONNX exporter takes sizes for constants where it meets unflatten, and writes axes of -1.
        channels = query.shape[1] // self.groups
        features = conv(query.reshape(batch * self.groups, channels, *query.shape[2:]))
        features = features.movedim(1, features.dim() - 1)
        offset = linear(act(norm(features)))
        offset = offset.reshape(batch, self.groups, *offset.shape[1:])
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        key_size = offset.shape[2:-1]
        reference = reference_points(key_size, self.convention, offset)
        if self.offset_range is None:
            return SamplingPoints(offset, reference, (reference + offset).clamp(-1, 1))
        # Not one new_tensor: an exported program would keep the numbers of the example.
        cells = torch.stack([offset.new_full((), divisor(n, self.convention)) for n in key_size])
        offset = offset.tanh() * self.offset_range / cells
        return SamplingPoints(offset, reference, reference + offset)
