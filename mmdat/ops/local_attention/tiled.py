"""Attention to pixels nearby, tile by tile.

A tile of queries meets a square of keys that holds all that they see: the tile itself if it is a window, or with
neighbourhoods of 7, for 8x8 queries, 14x14 keys. The scores of all its queries to all these keys are one dense matrix
product; those to keys that a query does not see are masked. The backward pass computes the scores again, so that
nothing is kept but inputs and output.

Letters in shapes: r and c rows and columns of tiles, T = B * r * c * heads, Q queries of a tile, K keys of its square,
d channels of a head.
"""

from collections.abc import Iterator
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..implementation import no_autocast
from .tiles import neighborhoods, windows

#: Some rows and columns of tiles.
Tiles = tuple[slice, slice]


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    scores: int,
) -> Tensor:
    """Attention to pixels nearby.

    Args:
        query, key, value: ``(B, C, H, W)``.
        table: The bias, ``(heads, 2 * size - 1, 2 * size - 1)``, indexed by key minus query.
        num_heads: Number of heads.
        pattern: What a query sees: ``'neighborhood'`` or ``'window'``.
        size: Side of the neighbourhoods or windows.
        shift: Of windows.
        scores: About how many scores are held at a time.

    Returns:
        ``(B, C, H, W)``.
    """
    with no_autocast(query.device):
        work = _Work(query, table, num_heads, pattern, size, shift)
        q, k, v = work.pad_queries(query), work.pad_keys(key), work.pad_keys(value)
        out = torch.empty_like(q)
        for tiles in work.chunks(scores):
            p = work.attention(tiles, work.queries(tiles, q), work.keys(tiles, k))
            work.write(tiles, out, torch.bmm(p.to(v.dtype), work.keys(tiles, v)))
        return work.crop(out, query, 0)


def backward(
    grad: Tensor,
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    scores: int,
    needs: list[bool],
) -> list[Optional[Tensor]]:
    """Gradients of query, key, value and table, those that ``needs`` names; see :func:`forward`."""
    with no_autocast(query.device):
        work = _Work(query, table, num_heads, pattern, size, shift)
        padded = [work.pad_queries(query), work.pad_keys(key), work.pad_keys(value)]
        grads = [torch.zeros_like(x) if need else None for x, need in zip([*padded, work.bias], needs)]
        grad, out = work.pad_queries(grad), work.pad_queries(out)
        for tiles in work.chunks(scores):
            _add_gradients(work, tiles, grad, out, *padded, *grads)
        return [
            work.crop(grads[0], query, 0) if needs[0] else None,
            work.crop(grads[1], key, work.margin) if needs[1] else None,
            work.crop(grads[2], value, work.margin) if needs[2] else None,
            work.table_grad(grads[3]) if needs[3] else None,
        ]


def _add_gradients(
    work: '_Work',
    tiles: Tiles,
    grad: Tensor,
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grad_query: Optional[Tensor],
    grad_key: Optional[Tensor],
    grad_value: Optional[Tensor],
    grad_bias: Optional[Tensor],
) -> None:
    """Add some tiles' part to the gradients that are needed."""
    q, k, g = work.queries(tiles, query), work.keys(tiles, key), work.queries(tiles, grad)
    p = work.attention(tiles, q, k)
    if grad_value is not None:
        work.add_keys(tiles, grad_value, torch.bmm(p.to(g.dtype).transpose(1, 2), g))
    if grad_query is None and grad_key is None and grad_bias is None:
        return
    delta = (g * work.queries(tiles, out)).sum(-1, keepdim=True, dtype=p.dtype)
    grad_scores = torch.bmm(g, work.keys(tiles, value).transpose(1, 2)).to(p.dtype).sub_(delta).mul_(p)
    if grad_bias is not None:
        for part, bias in work.parts(tiles, grad_scores, grad_bias):
            bias += part.sum((0, 1, 2))
    grad_scores = grad_scores.to(q.dtype)
    if grad_query is not None:
        work.write(tiles, grad_query, torch.bmm(grad_scores, k).mul_(work.scale))
    if grad_key is not None:
        work.add_keys(tiles, grad_key, torch.bmm(grad_scores.transpose(1, 2), q * work.scale))


class _Work:
    """How a map is cut into tiles, and the biases within them.

    Attributes:
        bias: Of tiles in each pair of a run of rows and one of columns, ``(heads, pairs, Q, K)``, in the precision of
            scores; -inf where a query does not see a key.
    """

    def __init__(self, query: Tensor, table: Tensor, num_heads: int, pattern: str, size: int, shift: int):
        self.batch, channels, *lengths = query.shape
        self.heads, self.channels = num_heads, channels // num_heads
        self.scale = self.channels**-0.5
        self.rows, self.cols = [
            windows(length, size, shift) if pattern == 'window' else neighborhoods(length, size) for length in lengths
        ]
        self.side, self.key_side, self.margin = self.rows.side, self.rows.key_side, self.rows.margin
        self.num_queries, self.num_keys = self.side**2, self.key_side**2
        self.table = table
        entries = table.shape[1] * table.shape[2]
        # The table has one entry more for keys that are not seen: where row and column add up to its index or beyond.
        row, col = [
            [[[entries if i is None else i * stride for i in keys] for keys in run.relative] for run in axis.runs]
            for axis, stride in ((self.rows, table.shape[2]), (self.cols, 1))
        ]
        row = torch.tensor(row, device=table.device).view(-1, 1, self.side, 1, self.key_side, 1)
        col = torch.tensor(col, device=table.device).view(-1, 1, self.side, 1, self.key_side)
        self.index = (row + col).clamp_(max=entries).flatten()
        values = table.to(torch.promote_types(query.dtype, table.dtype)).flatten(1)
        values = F.pad(values, (0, 1), value=-torch.inf).index_select(1, self.index)
        self.bias = values.view(self.heads, -1, self.num_queries, self.num_keys)

    def table_grad(self, bias_grad: Tensor) -> Tensor:
        grad = bias_grad.new_zeros(self.heads, self.table[0].numel() + 1)
        grad.index_add_(1, self.index, bias_grad.flatten(1))
        return grad[:, :-1].contiguous().view(self.table.shape).to(self.table.dtype)

    def attention(self, tiles: Tiles, query: Tensor, key: Tensor) -> Tensor:
        """``(T, Q, K)`` in the precision of the bias; products in that of the query."""
        scores = torch.bmm(query * self.scale, key.transpose(1, 2)).to(self.bias.dtype)
        for part, bias in self.parts(tiles, scores, self.bias):
            part += bias
        return scores.softmax(-1)

    def parts(self, tiles: Tiles, scores: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The scores ``(T, Q, K)`` of some tiles in parts ``(B, r, c, heads, Q, K)`` that share a bias, with that."""
        biases = iter(bias.unbind(1))
        rows, cols = [some.stop - some.start for some in tiles]
        scores = scores.view(self.batch, rows, cols, self.heads, *scores.shape[1:])
        for row_run in self.rows.runs:
            rows = scores[:, row_run.among(tiles[0])]
            for col_run in self.cols.runs:
                part, shared = rows[:, :, col_run.among(tiles[1])], next(biases)
                if part.shape[1] and part.shape[2]:
                    yield part, shared

    def chunks(self, scores: int) -> Iterator[Tiles]:
        """All tiles, some at a time."""
        fit = max(scores // (self.batch * self.heads * self.num_queries * self.num_keys), 1)
        width = min(fit, self.cols.tiles)
        height = min(fit // width, self.rows.tiles)
        for col in range(0, self.cols.tiles, width):
            for row in range(0, self.rows.tiles, height):
                yield slice(row, min(row + height, self.rows.tiles)), slice(col, min(col + width, self.cols.tiles))

    # Maps are padded at first and cropped at last, so that all tiles and squares are whole.

    def pad_queries(self, x: Tensor) -> Tensor:
        return self._pad(x, 0)

    def pad_keys(self, x: Tensor) -> Tensor:
        return self._pad(x, self.margin)

    def _pad(self, x: Tensor, margin: int) -> Tensor:
        padding = [side + margin for axis in (self.cols, self.rows) for side in (axis.before, axis.after)]
        return F.pad(x, padding) if any(padding) else x

    def crop(self, x: Tensor, like: Tensor, margin: int) -> Tensor:
        if x.shape == like.shape:
            return x
        for dim, axis in ((2, self.rows), (3, self.cols)):
            x = x.narrow(dim, axis.before + margin, like.shape[dim])
        return torch.empty_like(like).copy_(x)

    def queries(self, tiles: Tiles, x: Tensor) -> Tensor:
        """Some tiles of a padded map, ``(T, Q, d)``; maybe a view."""
        return self._cut(tiles, x, self.side).reshape(-1, self.num_queries, self.channels)

    def write(self, tiles: Tiles, x: Tensor, values: Tensor) -> None:
        """The reverse of :meth:`queries`."""
        view = self._cut(tiles, x, self.side)
        view.copy_(values.view(view.shape))

    def keys(self, tiles: Tiles, x: Tensor) -> Tensor:
        """The squares of keys of some tiles in a padded map, ``(T, K, d)``; maybe a view."""
        return self._cut(tiles, x, self.key_side).reshape(-1, self.num_keys, self.channels)

    def add_keys(self, tiles: Tiles, x: Tensor, values: Tensor) -> None:
        """Add to the squares of keys in a padded map."""
        view = self._cut(tiles, x, self.key_side)
        values = values.view(view.shape)
        # One can only add in place where squares do not overlap: every other one, with neighbourhoods of 7.
        step = -(-self.key_side // self.side)
        for row in range(min(step, view.shape[1])):
            for col in range(min(step, view.shape[2])):
                view[:, row::step, col::step] += values[:, row::step, col::step]

    def _cut(self, tiles: Tiles, x: Tensor, side: int) -> Tensor:
        """A view ``(B, r, c, heads, side, side, d)`` of squares that begin where tiles, or their keys, begin."""
        for dim, some in zip((2, 3), tiles):
            x = x.unfold(dim, side, self.side).narrow(dim, some.start, some.stop - some.start)
        return x.unflatten(1, (self.heads, self.channels)).permute(0, 3, 4, 1, 5, 6, 2)
