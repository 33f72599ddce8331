"""Mixer D: deformable attention, the idea of the papers."""

from typing import Optional

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import at_least
from mmdat.ops import SAMPLERS, FixedBias, LogBias, TableBias, check_implementation, deform_sample, deformable_attention
from mmdat.ops.position_bias import PositionBias

from ..layers import bias_table, channelwise, check_heads, depthwise_conv
from .coordinates import query_axis
from .offset_network import OffsetNetwork

POSITION_BIASES = ('table', 'fixed', 'dwconv', 'log', 'none')


class DeformableAttention(nn.Module):
    """Attention to keys sampled at learned positions, shared by all queries (mixer D; DAT, section 3.2).

    Args:
        in_channels: Channels of the map, before and after.
        num_heads: Heads; divides ``in_channels``.
        groups: Offset groups, each with sampling points of its own; divides ``num_heads``.
        map_size: ``(H0, W0)``, the map that position-bias tables are made for. Other maps work too.
        kernel_size: Kernel of the offset network's depthwise convolution; odd, or ``stride``.
        stride: Key stride: pixels of the map per sampling point, along each axis.
        offset_range: Offsets are ``tanh(.) * offset_range`` in units of half a key cell, and may leave
            the map. With None they are free, and positions are clamped to the map.
        convention: Where points and queries lie, ``'dat'`` or ``'dat++'``; see :mod:`mmdat.models.mixers.coordinates`.
        position_bias: ``'table'`` (the papers' choice), ``'log'``, ``'fixed'``, ``'dwconv'`` (a depthwise
            convolution of the query, added to the output) or ``'none'``.
        use_offsets: With False, average-pool the map by ``stride`` in place of sampling; there is no
            position bias then (DAT++, ablation of offsets).
        sampler: ``'torch'`` or ``'mmcv'``; see :func:`mmdat.ops.deform_sample`.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after the output projection.
        impl: ``'fast'`` or ``'naive'``; see :func:`mmdat.ops.deformable_attention`.

    Attributes:
        offset_net: The :class:`OffsetNetwork`, or None with ``use_offsets=False``.

    Raises:
        ValueError: For values that do not go together, naming the field.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int,
        groups: int,
        map_size: tuple[int, int] = (14, 14),
        kernel_size: int = 5,
        stride: int = 1,
        offset_range: Optional[float] = None,
        convention: str = 'dat++',
        position_bias: str = 'table',
        use_offsets: bool = True,
        sampler: str = 'torch',
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        impl: str = 'fast',
    ):
        super().__init__()
        check_heads(in_channels, num_heads)
        if groups < 1 or num_heads % groups:
            raise ValueError(f'groups={groups} does not divide num_heads={num_heads}')
        if position_bias not in POSITION_BIASES:
            raise ValueError(f"position_bias must be one of {POSITION_BIASES}, got '{position_bias}'")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got '{sampler}'")
        check_implementation(impl)
        self.num_heads = num_heads
        self.groups = groups
        self.stride = stride
        self.convention = convention
        self.position_bias = position_bias if use_offsets else 'none'
        self.sampler = sampler
        self.attn_drop_rate = attn_drop_rate
        self.impl = impl

        self.proj_q = nn.Linear(in_channels, in_channels)
        self.proj_k = nn.Linear(in_channels, in_channels)
        self.proj_v = nn.Linear(in_channels, in_channels)
        self.proj_out = nn.Linear(in_channels, in_channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self.offset_net = None
        if use_offsets:
            self.offset_net = OffsetNetwork(in_channels, groups, kernel_size, stride, offset_range, convention)

        height, width = map_size
        if self.position_bias == 'table':
            self.relative_position_bias_table = bias_table(num_heads, 2 * height - 1, 2 * width - 1, std=0.01)
        elif self.position_bias == 'fixed':
            num_keys = max(height // stride, 1) * max(width // stride, 1)
            self.relative_position_bias_table = bias_table(num_heads, height * width, num_keys, std=0.01)
        elif self.position_bias == 'dwconv':
            self.bias_conv = depthwise_conv(in_channels)
        elif self.position_bias == 'log':
            # Parameters, not layers: the operator computes with them, and what wraps layers would have no effect.
            hidden, out = nn.Linear(2, 32), nn.Linear(32, num_heads // groups, bias=False)
            self.bias_mlp = nn.ModuleList(
                [nn.ParameterDict(hidden.named_parameters()), nn.ReLU(), nn.ParameterDict(out.named_parameters())]
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``, for any height and width."""
        query = channelwise(self.proj_q, x)
        if self.offset_net is None:
            position = None
            sampled = F.avg_pool2d(x, [-at_least(-side, -self.stride) for side in x.shape[2:]])
        else:
            position = self.offset_net(query).position
            sampled = deform_sample(x, position, self.sampler)
        out = deformable_attention(
            query,
            channelwise(self.proj_k, sampled),
            channelwise(self.proj_v, sampled),
            self.num_heads,
            self.score_bias(query, position),
            self.attn_drop_rate if self.training else 0.0,
            self.impl,
        )
        if self.position_bias == 'dwconv':
            out = out + self.bias_conv(query)
        return self.proj_drop(channelwise(self.proj_out, out))

    def score_bias(self, query: Tensor, position: Optional[Tensor]) -> Optional[PositionBias]:
        """What is added to the scores of the projected query ``(B, C, H, W)`` at the sampled positions, if anything."""
        if self.position_bias in ('none', 'dwconv'):
            return None
        height, width = query.shape[2:]
        if self.position_bias == 'fixed':
            return FixedBias(self.relative_position_bias_table, (height, width), position.shape[2] * position.shape[3])
        axes = [query_axis(size, self.convention, position) for size in (height, width)]
        if self.position_bias == 'table':
            return TableBias(self.relative_position_bias_table, position, *axes, evenly_spaced=True)
        hidden, _, out = self.bias_mlp
        return LogBias(hidden['weight'], hidden['bias'], out['weight'], position, *axes)
