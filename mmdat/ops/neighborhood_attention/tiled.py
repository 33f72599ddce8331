"""Neighbourhood attention, tile by tile.

The queries of a tile of 8x8 pixels see, with a kernel of 7, some of a window of 14x14 keys. The scores of
all its queries to all these keys are one dense matrix product; those to keys that a query does not see are masked.
The backward pass computes the scores again, so that nothing is kept but inputs and output.

Letters in shapes: r and c rows and columns of tiles, Q queries of a tile, K keys of its window, d channels of a head.
"""
from typing import Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from ..implementation import no_autocast
from .tiles import TILE, Run, runs, split


def forward(query: Tensor, key: Tensor, value: Tensor, table: Tensor, num_heads: int, kernel_size: int,
            scores: int) -> Tensor:
    """See :func:`mmdat.ops.neighborhood_attention`; about ``scores`` scores are held at a time."""
    with no_autocast(query.device):
        out = torch.empty_like(query)
        for bias, chunks in _work(query, table, num_heads, kernel_size, scores):
            for chunk in chunks:
                p = _attention(chunk.queries(query), chunk.windows(key), bias.values)
                chunk.write(out, p.to(value.dtype) @ chunk.windows(value))
        return out


def backward(grad: Tensor, out: Tensor, query: Tensor, key: Tensor, value: Tensor, table: Tensor, num_heads: int,
             kernel_size: int, scores: int, needs: List[bool]) -> List[Optional[Tensor]]:
    """Gradients of query, key, value and table, those that ``needs`` names."""
    with no_autocast(query.device):
        inputs = query, key, value, table
        grads = [torch.zeros_like(x) if need else None for x, need in zip(inputs, needs)]
        for bias, chunks in _work(query, table, num_heads, kernel_size, scores):
            bias_grad = torch.zeros_like(bias.values) if needs[3] else None
            for chunk in chunks:
                _chunk_backward(chunk, bias, grad, out, query, key, value, grads, bias_grad)
            if needs[3]:
                bias.add_table_grad(grads[3], bias_grad)
        return grads


def _chunk_backward(chunk: '_Chunk', bias: '_Bias', grad: Tensor, out: Tensor, query: Tensor, key: Tensor,
                    value: Tensor, grads: List[Optional[Tensor]], bias_grad: Optional[Tensor]) -> None:
    """Add a chunk's part to the gradients that are needed."""
    grad_query, grad_key, grad_value, _ = grads
    q, k, g = chunk.queries(query), chunk.windows(key), chunk.queries(grad)
    p = _attention(q, k, bias.values)
    if grad_value is not None:
        chunk.add_windows(grad_value, p.to(g.dtype).transpose(-1, -2) @ g)
    if grad_query is None and grad_key is None and bias_grad is None:
        return
    delta = (g * chunk.queries(out)).sum(-1, keepdim=True, dtype=p.dtype)
    grad_scores = (g @ chunk.windows(value).transpose(-1, -2)).to(p.dtype).sub_(delta).mul_(p)
    if bias_grad is not None:
        bias_grad += grad_scores.sum((0, 1, 2))
    grad_scores = grad_scores.to(q.dtype)
    scale = q.shape[-1]**-0.5
    if grad_query is not None:
        chunk.write(grad_query, (grad_scores @ k).mul_(scale))
    if grad_key is not None:
        chunk.add_windows(grad_key, grad_scores.transpose(-1, -2) @ q.mul_(scale))


def _attention(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """``(B, r, c, heads, Q, K)`` in the precision of the bias; products in that of the query."""
    scores = (query * query.shape[-1]**-0.5) @ key.transpose(-1, -2)
    return scores.to(bias.dtype).add_(bias).softmax(-1)


def _work(query: Tensor, table: Tensor, num_heads: int, kernel_size: int,
          scores: int) -> Iterator[Tuple['_Bias', List['_Chunk']]]:
    """All tiles: those that share a bias together, in chunks that there is room for."""
    batch, channels, height, width = query.shape
    dtype = torch.promote_types(query.dtype, table.dtype)
    for rows in runs(height, kernel_size):
        for cols in runs(width, kernel_size):
            queries, keys = rows.tile_side * cols.tile_side, rows.window_side * cols.window_side
            fit = max(scores // (batch * num_heads * queries * keys), 1)
            chunks = [
                _Chunk(batch, num_heads, channels // num_heads, some_rows, some_cols) for some_cols in split(cols, fit)
                for some_rows in split(rows, max(fit // some_cols.count, 1))
            ]
            yield _Bias(table, rows, cols, kernel_size, dtype), chunks


class _Bias:
    """The bias within a tile, read from the table; -inf where a query does not see a key.

    Attributes:
        values: ``(heads, Q, K)``.
    """

    def __init__(self, table: Tensor, rows: Run, cols: Run, kernel_size: int, dtype: torch.dtype):
        (row, row_seen), (col, col_seen) = [_relative(run, kernel_size, table.device) for run in (rows, cols)]
        shape = rows.tile_side * cols.tile_side, rows.window_side * cols.window_side
        self.index = (row[:, None, :, None] * table.shape[2] + col[None, :, None, :]).flatten()
        seen = (row_seen[:, None, :, None] & col_seen[None, :, None, :]).reshape(shape)
        values = table.to(dtype).flatten(1).index_select(1, self.index).unflatten(1, shape)
        self.values = values.masked_fill(~seen, -torch.inf)

    def add_table_grad(self, table_grad: Tensor, grad: Tensor) -> None:
        table_grad.view(len(table_grad), -1).index_add_(1, self.index, grad.flatten(1).to(table_grad.dtype))


def _relative(run: Run, kernel_size: int, device: torch.device) -> Tuple[Tensor, Tensor]:
    """Row of the bias table, and whether it is one, for each query of a tile and key of its window."""
    query = torch.arange(run.tile, run.tile + run.tile_side, device=device)[:, None]
    key = torch.arange(run.window, run.window + run.window_side, device=device)
    first = (query - kernel_size // 2).clamp(0, run.size - kernel_size)
    seen = (key >= first) & (key < first + kernel_size)
    return (key - query + kernel_size - 1).clamp(0, 2 * kernel_size - 2), seen


class _Chunk:
    """Some tiles: their queries in maps ``(B, C, H, W)``, and the windows of keys that these see."""

    def __init__(self, batch: int, heads: int, channels: int, rows: Run, cols: Run):
        self.batch, self.heads, self.channels, self.rows, self.cols = batch, heads, channels, rows, cols

    def queries(self, x: Tensor) -> Tensor:
        """A copy of the tiles of a map, ``(B, r, c, heads, Q, d)``."""
        return self._flat(self._tiles(x))

    def write(self, x: Tensor, tiles: Tensor) -> None:
        """The reverse of :meth:`queries`."""
        view = self._tiles(x)
        view.copy_(tiles.view(view.shape))

    def windows(self, x: Tensor) -> Tensor:
        """A copy of the windows of a map, ``(B, r, c, heads, K, d)``."""
        return self._flat(self._windows(x))

    def add_windows(self, x: Tensor, windows: Tensor) -> None:
        """Add windows to a map."""
        view = self._windows(x)
        windows = windows.view(view.shape)
        # One can only add in place where windows do not overlap: every other one, with a kernel of 7.
        rows, cols = [-(-run.window_side // TILE) for run in (self.rows, self.cols)]
        for row in range(min(rows, self.rows.count)):
            for col in range(min(cols, self.cols.count)):
                view[:, row::rows, col::cols] += windows[:, row::rows, col::cols]

    def _tiles(self, x: Tensor) -> Tensor:
        """A view ``(B, r, c, heads, rows of a tile, columns of a tile, d)``."""
        for dim, run in ((2, self.rows), (3, self.cols)):
            x = x.narrow(dim, run.tile, run.count * run.tile_side).unfold(dim, run.tile_side, run.tile_side)
        return self._by_head(x)

    def _windows(self, x: Tensor) -> Tensor:
        """A view ``(B, r, c, heads, rows of a window, columns of a window, d)``."""
        for dim, run in ((2, self.rows), (3, self.cols)):
            x = x.narrow(dim, run.window, (run.count - 1) * TILE + run.window_side).unfold(dim, run.window_side, TILE)
        return self._by_head(x)

    def _by_head(self, x: Tensor) -> Tensor:
        """``(B, C, r, c, rows, columns)`` to ``(B, r, c, heads, rows, columns, d)``."""
        return x.unflatten(1, (self.heads, self.channels)).permute(0, 3, 4, 1, 5, 6, 2)

    @staticmethod
    def _flat(x: Tensor) -> Tensor:
        return x.flatten(4, 5).contiguous()
