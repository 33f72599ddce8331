"""Position biases of deformable attention (DAT, section 3.2; DAT++, section 3.3 and its ablations).

Each kind holds what its bias is computed from and offers ``evaluate(queries)``: the bias of some of the queries
(of the flattened map; by default all) to all keys, ``(B or 1, heads, queries, N)`` with ``N = Hk * Wk``.
So nobody has to hold the bias of all queries at once.

Positions are (y, x), normalised so that -1 and 1 are the borders of the map. Signals and volumes have such biases, too:
positions of a signal are (x,), and its ``query_y`` is None; those of a volume are (z, y, x), and it has ``query_z``.
"""

import math
import warnings
from dataclasses import InitVar, dataclass, fields
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import at_least

from . import bilinear

ALL = slice(None)


@dataclass(frozen=True, eq=False)
class TableBias:
    """A table read bilinearly at the displacement between query and key, zero outside.

    Attributes:
        table: ``(heads, 2 * H0 - 1, 2 * W0 - 1)``, or with one or three axes; its centre is displacement zero, its
            border half the sum of two opposite positions (a displacement of one).
        position: Key positions ``(B, G, Hk, Wk, 2)``; ``G`` divides ``heads``.
        query_y: Row positions of the queries ``(H,)``; None for a signal.
        query_x: Column positions of the queries ``(W,)``.
        evenly_spaced: Whether the queries are known to be at most ``2 / (H - 1)`` and ``2 / (W - 1)`` apart, as those
            evenly spaced within the map are: a tile of them then reads a part of the table only.
        query_z: Depth positions of the queries ``(D,)``, for a volume.
        even: The name of ``evenly_spaced`` in mmdat 0.1; deprecated.
    """

    table: Tensor
    position: Tensor
    query_y: Optional[Tensor]
    query_x: Tensor
    evenly_spaced: bool = False
    query_z: Optional[Tensor] = None
    even: InitVar[Optional[bool]] = None

    def __post_init__(self, even: Optional[bool]) -> None:
        if even is not None:
            warnings.warn('TableBias(even=...) is now called evenly_spaced', DeprecationWarning, stacklevel=3)
            object.__setattr__(self, 'evenly_spaced', even)  # as dataclasses themselves fill frozen fields

    @property
    def dtype(self) -> torch.dtype:
        return self.position.dtype

    @property
    def numbers_per_pair(self) -> int:
        """How many numbers :meth:`evaluate` holds at a time, per query and key of an image."""
        return max(self.table.shape[0], self.position.shape[1] * self.position.shape[-1])

    def evaluate(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        batch, groups = self.position.shape[:2]
        displacement = _displacement(self, queries) / 2
        table = self.table.to(displacement.dtype).unflatten(0, (groups, -1))
        table = table.repeat(batch, *[1] * (table.dim() - 1))
        bias = bilinear.sample(table, displacement.flatten(0, 1))
        return bias.unflatten(0, (batch, groups)).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class LogBias:
    """A small network of the log-spaced displacement, shared by all groups (as in Swin V2).

    Attributes:
        weight1: ``(hidden, 2)``, or as many columns as there are axes.
        bias1: ``(hidden,)``.
        weight2: ``(heads / G, hidden)``.
        position: Key positions ``(B, G, Hk, Wk, 2)``.
        query_y: Row positions of the queries ``(H,)``; None for a signal.
        query_x: Column positions of the queries ``(W,)``.
        query_z: Depth positions of the queries ``(D,)``, for a volume.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    position: Tensor
    query_y: Optional[Tensor]
    query_x: Tensor
    query_z: Optional[Tensor] = None

    @property
    def dtype(self) -> torch.dtype:
        return self.position.dtype

    @property
    def numbers_per_pair(self) -> int:
        """How many numbers :meth:`evaluate` holds at a time, per query and key of an image."""
        return self.position.shape[1] * self.weight1.shape[0]

    def evaluate(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        displacement = _displacement(self, queries) * 4
        displacement = displacement.sign() * torch.log2(displacement.abs() + 1) / math.log2(8)
        weight1, bias1, weight2 = [x.to(displacement.dtype) for x in (self.weight1, self.bias1, self.weight2)]
        return F.linear(F.linear(displacement, weight1, bias1).relu(), weight2).permute(0, 1, 4, 2, 3).flatten(1, 2)


@dataclass(frozen=True, eq=False)
class FixedBias:
    """A bias for each pair of query and key, resized bilinearly to other map sizes.

    Attributes:
        table: ``(heads, H0 * W0, Hk0 * Wk0)``.
        query_size: ``(H, W)`` of the query map; of any number of axes.
        num_keys: ``N``.
    """

    table: Tensor
    query_size: tuple
    num_keys: int

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def numbers_per_pair(self) -> int:
        """How many numbers :meth:`evaluate` holds at a time, per query and key of an image."""
        return self.table.shape[0]

    def evaluate(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        num_queries = math.prod(self.query_size)
        # (A traced program is to be right for other sizes, too: it always resizes.)
        if not torch.jit.is_tracing() and self.table.shape[1:] == (num_queries, self.num_keys):
            return self.table[None, :, queries]
        # Bilinear interpolation is separable: first the rows of the queries, then all columns.
        step = (self.table.shape[1] - 1) / at_least(num_queries - 1, 1)
        dtype = torch.promote_types(self.table.dtype, torch.float32)  # half precision does not tell rows apart
        row = torch.arange(num_queries, dtype=dtype, device=self.table.device)[queries] * step
        first = row.floor()
        last = self.table.shape[1] - 1
        # (No clamp, which on a GPU does not take a traced size: a tensor on the CPU.)
        nearby = first.long(), first.long() + (first < last).long()
        below, above = [self.table.index_select(1, index) for index in nearby]
        rows = torch.lerp(below, above, (row - first)[:, None].to(self.table.dtype))
        if not torch.jit.is_tracing() and not self.num_keys:  # interpolate refuses to make nothing
            return rows[None, ..., :0]
        return F.interpolate(rows, size=self.num_keys, mode='linear', align_corners=True)[None]


PositionBias = Union[TableBias, LogBias, FixedBias]


def parts(bias: Optional[PositionBias]) -> list[Any]:
    """The fields of a bias in order, as its class takes them; of None, nothing."""
    return [] if bias is None else [getattr(bias, field.name) for field in fields(bias)]


def query_axes(bias: Union[TableBias, LogBias]) -> dict[str, Tensor]:
    """The fields with the positions of the queries, in the order of the axes."""
    axes = dict(query_z=bias.query_z, query_y=bias.query_y, query_x=bias.query_x)
    return {name: axis for name, axis in axes.items() if axis is not None}


def _displacement(bias: Union[TableBias, LogBias], queries: slice) -> Tensor:
    """Query minus key position, ``(B, G, queries, N, axes)``."""
    query = torch.stack(torch.meshgrid(*query_axes(bias).values(), indexing='ij'), -1)
    return query.flatten(0, -2)[queries][:, None] - bias.position.flatten(2, -2).unsqueeze(2)
