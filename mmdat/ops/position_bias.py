"""Position biases of deformable attention (DAT, section 3.2; DAT++, section 3.3 and its ablations).

Each kind holds what its bias is computed from and offers ``of(queries)``: the bias of some of the queries
(of the flattened map; by default all) to all keys, ``(B or 1, heads, queries, N)`` with ``N = Hk * Wk``.
So nobody has to hold the bias of all queries at once.

Positions are (y, x), normalised so that -1 and 1 are the borders of the map.
"""

import math
from typing import NamedTuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = slice(None)


class TableBias(NamedTuple):
    """A table read bilinearly at the displacement between query and key, zero outside.

    Attributes:
        table: ``(heads, 2 * H0 - 1, 2 * W0 - 1)``; its centre is displacement zero, its border
            half the sum of two opposite positions (a displacement of one).
        position: Key positions ``(B, G, Hk, Wk, 2)``; ``G`` divides ``heads``.
        query_y: Row positions of the queries ``(H,)``.
        query_x: Column positions of the queries ``(W,)``.
        even: Whether the queries are known to be at most ``2 / (H - 1)`` and ``2 / (W - 1)`` apart, as those
            evenly spaced within the map are: a tile of them then reads a part of the table only.
    """

    table: Tensor
    position: Tensor
    query_y: Tensor
    query_x: Tensor
    even: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return self.position.dtype

    @property
    def numbers(self) -> int:
        """How many numbers :meth:`of` holds at a time, per query and key of an image."""
        return max(self.table.shape[0], 2 * self.position.shape[1])

    def of(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        batch, groups = self.position.shape[:2]
        displacement = _displacement(self, queries) / 2
        table = self.table.to(displacement.dtype).unflatten(0, (groups, -1)).repeat(batch, 1, 1, 1)
        bias = F.grid_sample(table, displacement.flatten(0, 1).flip(-1), mode='bilinear', align_corners=True)
        return bias.unflatten(0, (batch, groups)).flatten(1, 2)


class LogBias(NamedTuple):
    """A small network of the log-spaced displacement, shared by all groups (as in Swin V2).

    Attributes:
        weight1: ``(hidden, 2)``.
        bias1: ``(hidden,)``.
        weight2: ``(heads / G, hidden)``.
        position: Key positions ``(B, G, Hk, Wk, 2)``.
        query_y: Row positions of the queries ``(H,)``.
        query_x: Column positions of the queries ``(W,)``.
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    position: Tensor
    query_y: Tensor
    query_x: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.position.dtype

    @property
    def numbers(self) -> int:
        """How many numbers :meth:`of` holds at a time, per query and key of an image."""
        return self.position.shape[1] * self.weight1.shape[0]

    def of(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        displacement = _displacement(self, queries) * 4
        displacement = displacement.sign() * torch.log2(displacement.abs() + 1) / math.log2(8)
        hidden = F.linear(displacement, self.weight1, self.bias1).relu()
        return F.linear(hidden, self.weight2).movedim(-1, 2).flatten(1, 2)


class FixedBias(NamedTuple):
    """A bias for each pair of query and key, resized bilinearly to other map sizes.

    Attributes:
        table: ``(heads, H0 * W0, Hk0 * Wk0)``.
        query_size: ``(H, W)`` of the query map.
        num_keys: ``N``.
    """

    table: Tensor
    query_size: tuple
    num_keys: int

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def numbers(self) -> int:
        """How many numbers :meth:`of` holds at a time, per query and key of an image."""
        return self.table.shape[0]

    def of(self, queries: slice = ALL) -> Tensor:
        """Bias of some queries of the flattened map, or of all, to all keys, ``(B or 1, heads, queries, N)``."""
        num_queries = self.query_size[0] * self.query_size[1]
        if self.table.shape[1:] == (num_queries, self.num_keys):
            return self.table[None, :, queries]
        # Bilinear interpolation is separable: first the rows of the queries, then all columns.
        step = (self.table.shape[1] - 1) / max(num_queries - 1, 1)
        row = torch.arange(num_queries, dtype=self.table.dtype, device=self.table.device)[queries] * step
        first = row.floor()
        last = self.table.shape[1] - 1
        below, above = [self.table.index_select(1, (first + i).long().clamp(max=last)) for i in (0, 1)]
        rows = torch.lerp(below, above, (row - first)[:, None])
        return F.interpolate(rows, size=self.num_keys, mode='linear', align_corners=True)[None]


PositionBias = Union[TableBias, LogBias, FixedBias]


def _displacement(bias: Union[TableBias, LogBias], queries: slice) -> Tensor:
    """Query minus key position, ``(B, G, queries, N, 2)``."""
    query = torch.stack(torch.meshgrid(bias.query_y, bias.query_x, indexing='ij'), -1)
    return query.flatten(0, 1)[queries][:, None] - bias.position.flatten(2, 3).unsqueeze(2)
