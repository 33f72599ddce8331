"""Mixer D: deformable attention, the idea of the papers."""

import math
from typing import Any, Optional, Union

import torch.nn as nn
from torch import Tensor

from mmdat.compat import at_least
from mmdat.ops import SAMPLERS, FixedBias, LogBias, TableBias, check_implementation, deform_sample, deformable_attention
from mmdat.ops.checks import check_channels, sizes_are_numbers
from mmdat.ops.position_bias import PositionBias

from ..layers import AVERAGE_POOLS, Axes, bias_table, channelwise, check_heads, depthwise_conv, per_axis
from .coordinates import query_axis
from .official import adapt_layer
from .offset_network import OffsetNetwork

POSITION_BIASES = ('table', 'fixed', 'dwconv', 'log', 'none')


class DeformableAttention(nn.Module):
    """Attention to keys sampled at learned positions, shared by all queries (mixer D; DAT, section 3.2).

    The queries are of one map; keys and values are sampled from the same map or from a ``context``, a second map of any
    size. Signals and volumes are taken as well as maps, by ``dims``. The weights of a single official layer
    (``DAttentionBaseline``) load as they are.

    Example:
        >>> layer = DeformableAttention(64)
        >>> layer(torch.randn(2, 64, 20, 30)).shape
        torch.Size([2, 64, 20, 30])
        >>> fusion = DeformableAttention(64, context_channels=16)
        >>> fusion(torch.randn(2, 64, 20, 30), torch.randn(2, 16, 80, 50)).shape
        torch.Size([2, 64, 20, 30])

    Args:
        in_channels: Channels of the map, before and after.
        num_heads: Heads; divides ``in_channels``. By default one per 32 channels, as in the papers' models, or fewer
            that divide the channels.
        groups: Offset groups, each with sampling points of its own; divides ``num_heads`` and ``context_channels``. By
            default one per two heads, as in DAT++.
        map_size: ``(H0, W0)``, the map that position-bias tables are made for. Other maps work too.
        kernel_size: Kernel of the offset network's depthwise convolution; odd, or ``stride``.
        stride: Key stride: pixels of the query map per sampling point.
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
        impl: ``'fast'``, ``'naive'``, ``'tiled'`` or ``'triton'``; see :func:`mmdat.ops.deformable_attention`.
        dims: Axes beside batch and channels: 1 for signals, 2 for maps, 3 for volumes and video clips. ``map_size``,
            ``kernel_size`` and ``stride`` are a number, or one for each axis.
        context_channels: Channels of the map that is sampled, if it is not the query map.

    Attributes:
        stride: The key stride along each axis.
        offset_net: The :class:`OffsetNetwork`, or None with ``use_offsets=False``.

    Raises:
        ValueError: For values that do not go together, naming the field.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: Optional[int] = None,
        groups: Optional[int] = None,
        map_size: Union[int, Axes] = 14,
        kernel_size: Union[int, Axes] = 5,
        stride: Union[int, Axes] = 1,
        offset_range: Optional[float] = None,
        convention: str = 'dat++',
        position_bias: str = 'table',
        use_offsets: bool = True,
        sampler: str = 'torch',
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        impl: str = 'fast',
        dims: int = 2,
        context_channels: Optional[int] = None,
    ):
        super().__init__()
        if dims not in (1, 2, 3):
            raise ValueError(f'dims must be 1, 2 or 3, got {dims}')
        context_channels = in_channels if context_channels is None else context_channels
        if num_heads is None:
            num_heads = math.gcd(in_channels, max(in_channels // 32, 1))
        check_heads(in_channels, num_heads)
        if groups is None:
            groups = math.gcd(context_channels, num_heads, max(num_heads // 2, 1))
        if groups < 1 or num_heads % groups:
            raise ValueError(f'groups={groups} does not divide num_heads={num_heads}')
        if context_channels % groups:
            raise ValueError(f'groups={groups} does not divide context_channels={context_channels}')
        if position_bias not in POSITION_BIASES:
            raise ValueError(f"position_bias must be one of {POSITION_BIASES}, got '{position_bias}'")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got '{sampler}'")
        if sampler == 'mmcv' and dims != 2:
            raise ValueError(f"sampler='mmcv' is for dims=2, got dims={dims}")
        check_implementation(impl)
        map_size = per_axis(map_size, dims, 'map_size')
        self.in_channels = in_channels
        self.context_channels = context_channels
        self.num_heads = num_heads
        self.groups = groups
        self.dims = dims
        self.stride = per_axis(stride, dims, 'stride')
        self.convention = convention
        self.position_bias = position_bias if use_offsets else 'none'
        self.sampler = sampler
        self.attn_drop_rate = attn_drop_rate
        self.impl = impl

        self.proj_q = nn.Linear(in_channels, in_channels)
        self.proj_k = nn.Linear(context_channels, in_channels)
        self.proj_v = nn.Linear(context_channels, in_channels)
        self.proj_out = nn.Linear(in_channels, in_channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        self.offset_net = None
        if use_offsets:
            self.offset_net = OffsetNetwork(in_channels, groups, kernel_size, stride, offset_range, convention, dims)

        if self.position_bias == 'table':
            self.relative_position_bias_table = bias_table(num_heads, *(2 * side - 1 for side in map_size), std=0.01)
        elif self.position_bias == 'fixed':
            num_keys = math.prod(max(side // step, 1) for side, step in zip(map_size, self.stride))
            self.relative_position_bias_table = bias_table(num_heads, math.prod(map_size), num_keys, std=0.01)
        elif self.position_bias == 'dwconv':
            self.bias_conv = depthwise_conv(in_channels, (3,) * dims)
        elif self.position_bias == 'log':
            # Parameters, not layers: the operator computes with them, and what wraps layers would have no effect.
            hidden, out = nn.Linear(dims, 32), nn.Linear(32, num_heads // groups, bias=False)
            self.bias_mlp = nn.ModuleList(
                [nn.ParameterDict(hidden.named_parameters()), nn.ReLU(), nn.ParameterDict(out.named_parameters())]
            )

    def forward(self, x: Tensor, context: Optional[Tensor] = None) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``, for any height and width.

        Args:
            x: The query map; a signal ``(B, C, L)`` with ``dims=1``, a volume ``(B, C, D, H, W)`` with ``dims=3``.
            context: The map to sample, ``(B, context_channels, …)``, of a size of its own; by default ``x``. Its first
                and last pixels lie on those of ``x``.

        Raises:
            ValueError: If a map has other axes or channels than the layer, or the maps are of different batches.
        """
        x, context = self.inputs(x, context)
        query = channelwise(self.proj_q, x)
        if self.offset_net is None:
            position = None
            cell = [-at_least(-side, -step) for side, step in zip(context.shape[2:], self.stride)]
            sampled = AVERAGE_POOLS[self.dims](context, cell)
        else:
            position = self.offset_net(query).position
            sampled = deform_sample(context, position, self.sampler)
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

    def inputs(self, x: Tensor, context: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """The arguments of :meth:`forward` as the two maps of the attention: of the queries, and to be sampled."""
        context = x if context is None else context
        if sizes_are_numbers():
            for name, map_, channels in (('x', x, self.in_channels), ('context', context, self.context_channels)):
                check_channels(name, map_, channels, self.dims)
                if not math.prod(map_.shape[2:]):
                    raise ValueError(f'{name} has no pixels, got shape {tuple(map_.shape)}')
            if len(x) != len(context):
                raise ValueError(f'x has a batch of {len(x)}, context one of {len(context)}')
        return x, context

    def score_bias(self, query: Tensor, position: Optional[Tensor]) -> Optional[PositionBias]:
        """What is added to the scores of the projected query ``(B, C, H, W)`` at the sampled positions, if anything."""
        if self.position_bias in ('none', 'dwconv'):
            return None
        size = tuple(query.shape[2:])
        if self.position_bias == 'fixed':
            return FixedBias(self.relative_position_bias_table, size, math.prod(position.shape[2:-1]))
        axes: list[Optional[Tensor]] = [query_axis(side, self.convention, position) for side in size]
        query_z, query_y, query_x = [None] * (3 - self.dims) + axes
        if self.position_bias == 'table':
            table = self.relative_position_bias_table
            return TableBias(table, position, query_y, query_x, evenly_spaced=True, query_z=query_z)
        hidden, _, out = self.bias_mlp
        return LogBias(hidden['weight'], hidden['bias'], out['weight'], position, query_y, query_x, query_z)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args) -> None:
        """Take the weights of a single official layer, and a table of another size, whichever way they are loaded."""
        adapt_layer(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
