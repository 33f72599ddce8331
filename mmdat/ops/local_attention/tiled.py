"""Attention to pixels nearby, tile by tile.

A tile of queries meets a square of keys that holds all that they see: the tile itself if it is a window, or with
neighbourhoods of 7, for 8x8 queries, 14x14 keys. The scores of all its queries to all these keys are one dense matrix
product; those to keys that a query does not see are masked. The backward pass computes the scores again, so that
nothing is kept but inputs and output.

Shifted windows are those of the map rolled by the shift, as in Swin.

Letters in shapes: b images, h heads, r and c rows and columns of tiles, T = b * r * c * h, Q queries of a tile, K keys
of its square, d channels of a head.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from ..implementation import no_autocast
from .tiles import neighborhoods, windows

#: Added to scores in the last of shifted windows, between pixels of different sides of the map (as in Swin).
APART = -100.0


class Tiles(NamedTuple):
    """Some images, heads, and rows and columns of tiles."""

    images: slice
    heads: slice
    rows: slice
    cols: slice


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    max_scores: int,
) -> tuple[Tensor]:
    """Attention to pixels nearby.

    Args:
        query, key, value: ``(B, C, H, W)``.
        table: The bias, ``(heads, 2 * size - 1, 2 * size - 1)``, indexed by key minus query.
        num_heads: Number of heads.
        pattern: What a query sees: ``'neighborhood'`` or ``'window'``.
        size: Side of the neighbourhoods or windows.
        shift: Of windows.
        max_scores: About how many scores are held at a time, at least those of one head in a tile.

    Returns:
        ``(B, C, H, W)``, alone in a tuple.
    """
    with no_autocast(query.device):
        work = _Work(query, table, num_heads, pattern, size, shift)
        q, k, v = work.enter(query, 0), work.enter(key, work.margin), work.enter(value, work.margin)
        out = torch.empty_like(q)
        for tiles in work.chunks(max_scores):
            p = work.attention(tiles, work.queries(tiles, q), work.keys(tiles, k))
            work.write(tiles, out, torch.bmm(p.to(v.dtype), work.keys(tiles, v)))
        return (work.leave(out, query, 0),)


def backward(
    needs: Sequence[bool],
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
    max_scores: int,
) -> list[Optional[Tensor]]:
    """Gradients of query, key, value and table, those that ``needs`` names; see :func:`forward`."""
    with no_autocast(query.device):
        work = _Work(query, table, num_heads, pattern, size, shift)
        padded = [work.enter(query, 0), work.enter(key, work.margin), work.enter(value, work.margin)]
        grads = [torch.zeros_like(x) if need else None for x, need in zip([*padded, work.bias], needs)]
        grad, out = work.enter(grad, 0), work.enter(out, 0)
        for tiles in work.chunks(max_scores):
            _add_gradients(work, tiles, grad, out, *padded, *grads)
        return [
            work.leave(grads[0], query, 0) if needs[0] else None,
            work.leave(grads[1], key, work.margin) if needs[1] else None,
            work.leave(grads[2], value, work.margin) if needs[2] else None,
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
        self.shift = shift
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
        if shift:
            row, col = [
                torch.tensor([run.apart for run in axis.runs], device=table.device) for axis in (self.rows, self.cols)
            ]
            apart = row[:, None, :, None, :, None] | col[:, None, :, None, :]
            self.bias += apart.view(self.bias.shape[1:]) * APART

    def table_grad(self, bias_grad: Tensor) -> Tensor:
        grad = bias_grad.new_zeros(self.heads, self.table[0].numel() + 1)
        grad.index_add_(1, self.index, bias_grad.flatten(1))
        return torch.empty_like(self.table).copy_(grad[:, :-1].view(self.table.shape))

    def attention(self, tiles: Tiles, query: Tensor, key: Tensor) -> Tensor:
        """``(T, Q, K)`` in the precision of the bias; products in that of the query."""
        scores = torch.bmm(query * self.scale, key.transpose(1, 2)).to(self.bias.dtype)
        for part, bias in self.parts(tiles, scores, self.bias):
            part += bias
        return scores.softmax(-1)

    def parts(self, tiles: Tiles, scores: Tensor, bias: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The scores ``(T, Q, K)`` of some tiles in parts ``(b, r, c, h, Q, K)`` that share a bias, with that."""
        biases = iter(bias[tiles.heads].unbind(1))
        images, heads, rows, cols = [some.stop - some.start for some in tiles]
        scores = scores.view(images, rows, cols, heads, *scores.shape[1:])
        for row_run in self.rows.runs:
            rows = scores[:, row_run.among(tiles.rows)]
            for col_run in self.cols.runs:
                part, shared = rows[:, :, col_run.among(tiles.cols)], next(biases)
                if part.shape[1] and part.shape[2]:
                    yield part, shared

    def chunks(self, max_scores: int) -> Iterator[Tiles]:
        """All tiles, some at a time."""
        wholes = self.heads, self.batch, self.cols.tiles, self.rows.tiles
        fit = max(max_scores // (self.num_queries * self.num_keys), 1)
        lengths = []
        for whole in wholes:
            lengths.append(min(fit, whole))
            fit //= lengths[-1]
        ranges = [
            [slice(start, min(start + length, whole)) for start in range(0, whole, length)]
            for whole, length in zip(wholes, lengths)
        ]
        for heads, images, cols, rows in product(*ranges):
            yield Tiles(images, heads, rows, cols)

    # Maps are padded or rolled at first and cropped or rolled back at last, so that all tiles and squares are whole.

    def enter(self, x: Tensor, margin: int) -> Tensor:
        if self.shift:
            return _rolled(x, -self.shift)
        padding = [side + margin for axis in (self.cols, self.rows) for side in (axis.before, axis.after)]
        return F.pad(x, padding) if any(padding) else x

    def leave(self, x: Tensor, like: Tensor, margin: int) -> Tensor:
        """The reverse of :meth:`enter`."""
        if self.shift:
            return _rolled(x, self.shift)
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
        """A view ``(b, r, c, h, side, side, d)`` of squares that begin where tiles, or their keys, begin."""
        x = x.unflatten(1, (self.heads, self.channels))[tiles.images, tiles.heads]
        x = x.unfold(3, side, self.side).unfold(4, side, self.side)[:, :, :, tiles.rows, tiles.cols]
        return x.permute(0, 3, 4, 1, 5, 6, 2)


def _rolled(x: Tensor, shift: int) -> Tensor:
    """A map whose rows and columns are rolled, in one pass, in the layout of the map (unlike :func:`torch.roll`)."""
    out = torch.empty_like(x)
    height, width = [shift % size for size in x.shape[2:]]
    for to_row, from_row in ((slice(height, None), slice(None, -height)), (slice(height), slice(-height, None))):
        for to_col, from_col in ((slice(width, None), slice(None, -width)), (slice(width), slice(-width, None))):
            out[:, :, to_row, to_col] = x[:, :, from_row, from_col]
    return out
