"""Mixer D: deformable attention, the idea of the papers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import at_least
from mmdat.ops import SAMPLERS, FixedBias, LogBias, TableBias, check_implementation, deform_sample, deformable_attention
from mmdat.ops.position_bias import PositionBias
from mmdat.registry import MODELS

from ..layers import LayerNorm2d, Linear2d, check_heads, depthwise_conv

POSITION_BIASES = ('table', 'fixed', 'dwconv', 'log', 'none')


class SamplingPoints(NamedTuple):
    """What one deformable layer looked at in one forward pass; all (y, x), -1 and 1 the borders.

    Attributes:
        offset: How far each point moved, ``(B, G, Hk, Wk, 2)``, after any range factor.
        reference: Where the points start, ``(Hk, Wk, 2)``; the same for all images and groups.
        position: Where the map was sampled, ``(B, G, Hk, Wk, 2)``.

    A layer with ``use_offsets=False`` gives the centres of the cells that it pools: one group, no offsets.
    """

    offset: Tensor
    reference: Tensor
    position: Tensor


@MODELS.register_module()
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
        convention: Where points and queries lie, ``'dat'`` or ``'dat++'``; see :meth:`reference_points`.
        position_bias: ``'table'`` (the papers' choice), ``'log'``, ``'fixed'``, ``'dwconv'`` (a depthwise
            convolution of the query, added to the output) or ``'none'``.
        use_offsets: With False, average-pool the map by ``stride`` in place of sampling; there is no
            position bias then (DAT++, ablation of offsets).
        sampler: ``'torch'`` or ``'mmcv'``; see :func:`mmdat.ops.deform_sample`.
        attn_drop_rate: Dropout of attention weights.
        proj_drop_rate: Dropout after the output projection.
        impl: ``'fast'`` or ``'naive'``; see :func:`mmdat.ops.deformable_attention`.

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
        if convention not in ('dat', 'dat++'):
            raise ValueError(f"convention must be 'dat' or 'dat++', got '{convention}'")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {SAMPLERS}, got '{sampler}'")
        if use_offsets and kernel_size != stride and kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size} is even; it must be odd, or equal stride={stride}')
        check_implementation(impl)
        self.num_heads = num_heads
        self.groups = groups
        self.stride = stride
        self.offset_range = offset_range
        self.convention = convention
        self.position_bias = position_bias if use_offsets else 'none'
        self.sampler = sampler
        self.attn_drop_rate = attn_drop_rate
        self.impl = impl
        self.on_sample = None

        self.proj_q = Linear2d(in_channels, in_channels)
        self.proj_k = Linear2d(in_channels, in_channels)
        self.proj_v = Linear2d(in_channels, in_channels)
        self.proj_out = Linear2d(in_channels, in_channels)
        self.proj_drop = nn.Dropout(proj_drop_rate)
        group_dim = in_channels // groups
        self.unpadded = kernel_size == stride
        self.offset_net = (
            nn.Sequential(
                depthwise_conv(group_dim, kernel_size, stride, 0 if self.unpadded else kernel_size // 2),
                LayerNorm2d(group_dim),
                nn.GELU(),
                Linear2d(group_dim, 2, bias=False),
            )
            if use_offsets
            else None
        )

        height, width = map_size
        if self.position_bias == 'table':
            self._make_table(2 * height - 1, 2 * width - 1)
        elif self.position_bias == 'fixed':
            self._make_table(height * width, max(height // stride, 1) * max(width // stride, 1))
        elif self.position_bias == 'dwconv':
            self.bias_conv = depthwise_conv(in_channels)
        elif self.position_bias == 'log':
            self.bias_mlp = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, num_heads // groups, bias=False))

    def _make_table(self, rows: int, cols: int) -> None:
        self.relative_position_bias_table = nn.Parameter(torch.zeros(self.num_heads, rows, cols))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H, W)``, for any height and width.

        Only ``kernel_size == stride`` and ``use_offsets=False`` need at least ``stride`` pixels along each axis.
        """
        query = self.proj_q(x)
        if self.offset_net is None:
            position = None
            sampled = F.avg_pool2d(x, [min(self.stride, side) for side in x.shape[2:]])
            if self.on_sample is not None:
                self.on_sample(self._pooled_points(x, sampled))
        else:
            position = self.sampling_positions(query)
            sampled = deform_sample(x, position, self.sampler)
        out = deformable_attention(
            query,
            self.proj_k(sampled),
            self.proj_v(sampled),
            self.num_heads,
            self.score_bias(query, position),
            self.attn_drop_rate if self.training else 0.0,
            self.impl,
        )
        if self.position_bias == 'dwconv':
            out = out + self.bias_conv(query)
        return self.proj_drop(self.proj_out(out))

    def sampling_positions(self, query: Tensor) -> Tensor:
        """Where the map is sampled, ``(B, G, Hk, Wk, 2)``, for the projected query ``(B, C, H, W)``.

        At least float32, also under autocast: half precision cannot tell pixels of a large map apart.
        """
        batch = query.shape[0]  # len() would fix it in an exported program
        if self.unpadded and self.stride > 1:  # a map smaller than a key cell is filled up to one
            height, width = query.shape[2:]
            query = F.pad(query, (0, max(self.stride - width, 0), 0, max(self.stride - height, 0)))
        offset = self.offset_net(query.unflatten(1, (self.groups, -1)).flatten(0, 1))
        offset = offset.permute(0, 2, 3, 1).unflatten(0, (batch, self.groups))
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        key_height, key_width = offset.shape[2:4]
        reference = self.reference_points(key_height, key_width, offset)
        if self.offset_range is None:
            position = (reference + offset).clamp(-1, 1)
        else:
            # Not one new_tensor: an exported program would keep the numbers of the example.
            cells = torch.stack([offset.new_full((), self._cells(n)) for n in (key_height, key_width)])
            offset = offset.tanh() * self.offset_range / cells
            position = reference + offset
        if self.on_sample is not None:
            self.on_sample(SamplingPoints(offset, reference, position))
        return position

    def _pooled_points(self, x: Tensor, pooled: Tensor) -> SamplingPoints:
        """The centres of the pooled cells, as points of one group that do not move."""
        like = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
        axes = [
            ((_indices(n, like) * 2 + 1) * min(self.stride, size) - size) / max(size - 1, 1)
            for n, size in zip(pooled.shape[2:], x.shape[2:])
        ]
        reference = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
        position = reference.expand(len(x), 1, -1, -1, -1)
        return SamplingPoints(torch.zeros_like(position), reference, position)

    def reference_points(self, height: int, width: int, like: Tensor) -> Tensor:
        """One point per key cell, ``(height, width, 2)``, in the dtype and on the device of ``like``.

        DAT puts point i of n at ``(i + 0.5) / n * 2 - 1``; the released DAT++ at
        ``(i + 0.5) / (n - 1) * 2 - 1``, which runs past 1 (and is clamped later).
        """
        axes = [(_indices(n, like) + 0.5) / self._cells(n) * 2 - 1 for n in (height, width)]
        return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)

    def query_axis(self, size: int, like: Tensor) -> Tensor:
        """Positions of the queries along one axis, ``(size,)``: cell centres in DAT, border to border in DAT++."""
        if self.convention == 'dat':
            return (_indices(size, like) + 0.5) / size * 2 - 1
        return (_indices(size, like) * 2 - (size - 1)) / self._cells(size)

    def _cells(self, size: int) -> int:
        """What the convention divides an axis by; 1 for a single point, which then lies in the centre."""
        return size if self.convention == 'dat' else at_least(size - 1, 1)

    def score_bias(self, query: Tensor, position: Optional[Tensor]) -> Optional[PositionBias]:
        """What is added to the scores of the projected query ``(B, C, H, W)`` at the sampled positions, if anything."""
        if self.position_bias in ('none', 'dwconv'):
            return None
        height, width = query.shape[2:]
        if self.position_bias == 'fixed':
            return FixedBias(self.relative_position_bias_table, (height, width), position[0, 0, ..., 0].numel())
        axes = self.query_axis(height, position), self.query_axis(width, position)
        if self.position_bias == 'table':
            return TableBias(self.relative_position_bias_table, position, *axes, evenly_spaced=True)
        hidden, _, out = self.bias_mlp
        return LogBias(hidden.weight, hidden.bias, out.weight, position, *axes)


def _indices(size: int, like: Tensor) -> Tensor:
    return torch.arange(size, dtype=like.dtype, device=like.device)


@contextmanager
def record_sampling(model: nn.Module) -> Iterator[dict[str, list[SamplingPoints]]]:
    """Record what every deformable layer of a model samples while the ``with`` block runs.

    The hook point for visualisation and analysis: forward passes return what they always return, and
    layers that nobody watches do no extra work.

    Example:
        >>> with record_sampling(model) as points:
        ...     model(images)
        >>> offset, reference, position = points['stages.2.blocks.1.mixer'][0]

    Args:
        model: Any module that holds deformable attention.

    Yields:
        A dict from the layer's name in ``model`` to its :class:`SamplingPoints`, one per call of the
        layer (with ``with_cp=True`` the backward pass calls it once more).
    """
    records: dict[str, list[SamplingPoints]] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DeformableAttention)}
    try:
        for name, layer in layers.items():
            layer.on_sample = records.setdefault(name, []).append
        yield records
    finally:
        for layer in layers.values():
            layer.on_sample = None
