"""The bias of a tile of queries to a block of keys, from a table, without a read per query and key.

The bias of key n is a bilinear read of the table at a row that depends on the query's row alone, and a
column that depends on its column alone. So it separates into matrix products::

    bias[n, i, j] = sum_st  Y[n, s, i] * patch[n, s, t] * X[n, t, j]

with Y and X the "hat" weights ``max(0, 1 - |coordinate - tap|)`` of linear interpolation, and
``patch`` the few rows and columns of the table that the tile can reach.

Letters in shapes: L lanes (a lane is a group of one image, ``b * G + g``), n keys of a block, R and C
rows and columns of a tile of queries, S and T rows and columns ("taps") of a patch.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import TableBias


class TablePatches:
    """A :class:`mmdat.ops.TableBias`, read patch by patch.

    Args:
        bias: The whole bias.
        rows, cols: The largest tile of queries.
        dtype: What everything is computed in.
        scale: What the bias is multiplied by. Gradients are given, and wanted, of that which is not.
    """

    def __init__(self, bias: TableBias, rows: int, cols: int, dtype: torch.dtype, scale: float):
        self.scale = scale
        batch, self.groups = bias.position.shape[:2]
        self.size = bias.table.shape[1:]
        queries = len(bias.query_y), len(bias.query_x)
        axes = zip(self.size, (rows, cols), queries)
        self.taps = [count_taps(size, tile, length, bias.evenly_spaced) for size, tile, length in axes]
        # Zeros around the table, so that a patch may hang over its border by its full width.
        self.margins = [0 if taps == size else taps for taps, size in zip(self.taps, self.size)]
        self.padded = [size + 2 * margin for size, margin in zip(self.size, self.margins)]
        y, x = self.margins
        table = F.pad(bias.table.to(dtype) * scale, (x, x, y, y)).flatten(1)
        entries = table.shape[1]
        # Entry by entry, so that one read serves all heads of a group.
        self.entries = table.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        self.axes = bias.query_y.to(dtype), bias.query_x.to(dtype)
        self.position = bias.position.to(dtype).flatten(2, 3).flatten(0, 1)
        self.steps = [torch.arange(taps, device=table.device) for taps in self.taps]
        self.offsets = (self.steps[0][:, None] * self.padded[1] + self.steps[1]).flatten()
        # Where the table of each lane's group has its corner, without the margin.
        corner = y * self.padded[1] + x
        group_start = torch.arange(corner, corner + self.groups * entries, entries, device=table.device)
        self.lane_start = group_start.repeat(batch)[:, None]

    def block(self, lanes: slice, rows: slice, cols: slice, keys: slice) -> 'Block':
        """The patches for a tile of queries and some keys of some lanes."""
        key_y, key_x = self.position[lanes, keys].unbind(-1)
        first_row, y = self._coordinates(0, self.axes[0][rows], key_y)
        first_col, x = self._coordinates(1, self.axes[1][cols], key_x)
        index = self.lane_start[lanes] + first_row * self.padded[1] + first_col
        index = (index[..., None] + self.offsets).flatten()
        return Block(self.entries.index_select(0, index), index, y, x)

    def _coordinates(self, axis: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The first tap of each key ``(L, n)``; how far each query is beyond each tap ``(L * n, taps, queries)``."""
        size, margin = self.size[axis], self.margins[axis]
        # The arithmetic of TableBias.evaluate and grid_sample, so that all round alike.
        coordinate = ((query - key[..., None]) / 2 + 1) / 2 * (size - 1)
        if margin:
            # (A key that lies nowhere, at NaN, still needs some place to read; its weights are NaN.)
            first = coordinate.amin(-1).floor().nan_to_num(0.0).clamp(-margin, size)
            coordinate = coordinate - first[..., None]
            first = first.long()
        else:
            first = torch.zeros_like(key, dtype=torch.long)
        return first, coordinate.flatten(0, 1)[:, None] - self.steps[axis][:, None]

    def position_grad(self, coordinate_grad: Tensor) -> Tensor:
        """From gradients of (row, column) coordinates to those of (y, x) positions."""
        return coordinate_grad * coordinate_grad.new_tensor([(1 - size) / (4 * self.scale) for size in self.size])

    def table_grad(self, padded_grad: Tensor) -> Tensor:
        """From the gradient of the padded table to that of the table."""
        (y, x), (rows, cols) = self.margins, self.size
        grad = padded_grad.unflatten(1, (self.groups, -1)).transpose(0, 1).reshape(-1, *self.padded)
        return grad[:, y : y + rows, x : x + cols].contiguous()


class Block:
    """The patches of some keys, for one tile of queries.

    Args:
        entries: The patches, for each head of a group, ``(L * n * S * T, heads)``.
        index: Their places in the table of a head, ``(L * n * S * T,)``.
        y: How far the queries' rows are beyond the patch's rows, ``(L * n, S, R)``.
        x: How far the queries' columns are beyond the patch's columns, ``(L * n, T, C)``.
    """

    def __init__(self, entries: Tensor, index: Tensor, y: Tensor, x: Tensor):
        self.index, self.y, self.x = index, y, x
        self.weight_y, self.weight_x = _hat(y), _hat(x)
        self.tile = y.shape[2], x.shape[2]
        self.for_backward = None
        self.patch = entries.view(len(y), y.shape[1], x.shape[1], -1)
        # One product for all heads, (L * n, R, T * heads), then by head.
        rows = torch.bmm(self.weight_y.transpose(1, 2), self.patch.flatten(2))
        self.rows = rows.unflatten(2, self.patch.shape[2:]).permute(3, 0, 1, 2).contiguous()

    def bias(self, head: int) -> Tensor:
        """The bias of the head of each group, ``(L * n, R, C)``."""
        return torch.bmm(self.rows[head], self.weight_x)

    def backward(self, head: int, grad: Tensor, table_grad: Optional[Tensor]) -> Tensor:
        """Add to the gradient of the (padded) table.

        Args:
            head: Head of each group.
            grad: Gradient of :meth:`bias`.
            table_grad: Of all entries, ``(heads, G * entries)``; None if it is not needed.

        Returns:
            The gradient of the coordinates, ``(L * n, 2)``.
        """
        rows, cols = self.y.shape[1], self.x.shape[1]
        if self.for_backward is None:
            y = torch.cat([self.weight_y, _slope(self.y)], 1)
            x = torch.cat([self.weight_x, _slope(self.x)], 1)
            self.for_backward = y, x.transpose(1, 2), self.patch.permute(3, 0, 1, 2).contiguous()
        y, x, patch = self.for_backward
        # Columns first, of which tiles have more.
        grad = torch.bmm(y, torch.bmm(grad, x))
        if table_grad is not None:
            table_grad[head].index_add_(0, self.index, grad[:, :rows, :cols].reshape(-1))
        by_slope = [grad[:, rows:, :cols], grad[:, :rows, cols:]]
        return torch.stack([(patch[head] * part).sum((1, 2)) for part in by_slope], 1)


def count_taps(size: int, tile: int, queries: int, evenly_spaced: bool) -> int:
    """How many of ``size`` rows of a table a tile with ``tile`` of ``queries`` rows can read."""
    if not evenly_spaced:
        return size
    reach = (tile - 1) / max(queries - 1, 1) * (size - 1) / 2
    # A tile that reaches over 2.3 rows can begin at 0.9 and end at 3.2: rows 0 to 4. Rounding may add one to that.
    return min(size, math.floor(reach + 1e-3) + 3)


def _hat(x: Tensor) -> Tensor:
    """Weight of linear interpolation at distance x."""
    return (1 - x.abs()).clamp_(min=0)


def _slope(x: Tensor) -> Tensor:
    """Derivative of :func:`_hat`; at its kinks that of the side to the right, as in grid_sample."""
    cell = x.floor()
    return cell.eq(-1).to(x.dtype) - cell.eq(0).to(x.dtype)
