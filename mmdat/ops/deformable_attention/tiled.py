"""Deformable attention with a bias table, tile by tile.

Each tile of queries meets the keys block by block; the scores of a block stay in the cache, and the
softmax is taken on the way (with the true maximum so far, rescaling what came before when it grows).
The backward pass computes the scores again from the inputs and the log-sum-exp that the forward pass
keeps, so nothing of size queries x keys is ever whole.

Scores are laid out keys x queries: the output of a tile comes out by channels, and the table's bias
as one small matrix product per key. Letters in shapes as in ``table_patches.py``; d channels of a head.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from ..implementation import no_autocast
from ..position_bias import TableBias
from .table_patches import TablePatches, count_taps

#: Scores are in units of log 2, for PyTorch's ``exp2`` takes a fifth of the time of ``exp`` on CPUs with MKL.
LOG2_E = math.log2(math.e)
#: Queries of a tile if not all keys fit beside it.
TILE = 1024
#: Rows, and columns, of a table that a tile reads at most, where it can be made small enough: the products that make
#: the bias of a score grow with them. Square tiles stay below; those of a long and thin map would be as long.
MOST_TAPS = 64


class Plan(NamedTuple):
    """How the work is cut: images and groups at a time, rows and columns of a tile, keys of a block."""

    images: int
    groups: int
    rows: int
    cols: int
    keys: int


def make_plan(
    position: Sequence[int], map_size: Sequence[int], table: Sequence[int], evenly_spaced: bool, max_numbers: int
) -> Plan:
    """Cut the work evenly so that no tensor that is made on the way has more than about ``max_numbers`` numbers.

    Args:
        position: Shape of the key positions, ``(B, G, Hk, Wk, 2)``.
        map_size: ``(H, W)`` of the queries.
        table: Shape of the table, ``(heads, rows, columns)``.
        evenly_spaced: See :class:`mmdat.ops.TableBias`.
        max_numbers: 1 or more; as many as a tile has queries are held anyway.
    """
    max_numbers = max(max_numbers, TILE)
    batch, groups, *key_size, _ = position
    num_keys = math.prod(key_size)
    heads = table[0] // groups
    height, width = map_size

    def taps(rows: int, cols: int) -> tuple[int, int]:
        axes = zip(table[1:], (rows, cols), map_size)
        return tuple(count_taps(size, tile, length, evenly_spaced) for size, tile, length in axes)

    def numbers_per_key(rows: int, cols: int) -> int:
        """The largest tensor per lane and key: scores, hat weights and slopes, rows, patches or their indices."""
        row_taps, col_taps = taps(rows, cols)
        hats = 2 * max(row_taps * rows, col_taps * cols)
        return max(rows * cols, hats, heads * rows * col_taps, max(heads, 2) * row_taps * col_taps)

    queries = min(max(max_numbers // num_keys, TILE), height * width)
    cols = _even(width, math.isqrt(queries))
    rows = _even(height, queries // cols)
    cols = _even(width, queries // rows)
    while rows > 1 and taps(rows, cols)[0] > MOST_TAPS and evenly_spaced:
        rows = _even(height, rows // 2)
    while cols > 1 and taps(rows, cols)[1] > MOST_TAPS and evenly_spaced:
        cols = _even(width, cols // 2)
    while numbers_per_key(rows, cols) > max_numbers and rows * cols > 1:
        rows, cols = (_even(height, rows // 2), cols) if rows > cols else (rows, _even(width, cols // 2))
    numbers = numbers_per_key(rows, cols)
    block = _even(num_keys, max_numbers // numbers)
    lanes = max(max_numbers // (numbers * block), 1)
    return Plan(min(max(lanes // groups, 1), batch), min(lanes, groups), rows, cols, block)


def _even(size: int, most: int) -> int:
    """The length of equal parts of at most ``most``."""
    count = -(-size // max(most, 1))
    return -(-size // count)


def _parts(size: int, length: int) -> Iterator[slice]:
    for start in range(0, size, length):
        yield slice(start, min(start + length, size))


def compute_dtype(query: Tensor, position: Tensor) -> torch.dtype:
    return torch.promote_types(query.dtype, position.dtype)


class _Work:
    """The inputs in the layouts that forward and backward need, and how they are cut."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, bias: TableBias, num_heads: int, max_scores: int):
        self.batch, self.groups = bias.position.shape[:2]
        self.height, self.width = query.shape[2:]
        self.heads = num_heads // self.groups
        self.channels = query.shape[1] // num_heads
        self.scale = self.channels**-0.5
        self.num_keys = key.shape[2] * key.shape[3]
        # Scores, bias and sums are held in this precision; products run in that of the query.
        self.dtype = compute_dtype(query, bias.position)
        self.plan = make_plan(bias.position.shape, query.shape[2:], bias.table.shape, bias.evenly_spaced, max_scores)
        self.table = TablePatches(bias, self.plan.rows, self.plan.cols, self.dtype, LOG2_E)
        # By head of a group.
        self.query = self.split(query).unbind()
        # The keys are scaled, not the queries: that is one operation for all tiles.
        self.key, self.value = self.by_key(key * (self.scale * LOG2_E)).unbind(), self.by_key(value).unbind()

    def split(self, x: Tensor) -> Tensor:
        """A view ``(heads / G, B, G, H, W, d)`` of a map ``(B, C, H, W)``."""
        return x.unflatten(1, (self.groups, self.heads, self.channels)).permute(2, 0, 1, 4, 5, 3)

    def by_key(self, x: Tensor) -> Tensor:
        """A map ``(B, C, Hk, Wk)`` as ``(heads / G, lanes, N, d)``."""
        return self.split(x).flatten(3, 4).flatten(1, 2).contiguous()

    def from_keys(self, x: Tensor, like: Tensor) -> Tensor:
        """The reverse of :meth:`by_key`."""
        out = torch.empty_like(like)
        self.split(out).copy_(x.view(self.heads, self.batch, self.groups, *like.shape[2:], self.channels))
        return out

    def tiles(self) -> Iterator[tuple[tuple[slice, ...], slice]]:
        """Places of tiles in views of maps (images, groups, rows, columns), and their lanes."""
        plan = self.plan
        for images in _parts(self.batch, plan.images):
            for groups in _parts(self.groups, plan.groups):
                # Several images at a time only with all their groups, so that lanes follow each other.
                first = images.start * self.groups + groups.start
                lanes = slice(first, first + (images.stop - images.start) * (groups.stop - groups.start))
                for cols in _parts(self.width, plan.cols):
                    for rows in _parts(self.height, plan.rows):
                        yield (images, groups, rows, cols), lanes

    def key_blocks(self) -> Iterator[slice]:
        return _parts(self.num_keys, self.plan.keys)

    def queries(self, tile: tuple[slice, ...], lanes: slice) -> list[Tensor]:
        """Queries of a tile, of each head ``(L, R * C, d)``."""
        return [self.take(view, tile, lanes) for view in self.query]

    def take(self, view: Tensor, tile: tuple[slice, ...], lanes: slice) -> Tensor:
        return view[tile].reshape(lanes.stop - lanes.start, -1, view.shape[-1])

    def put(self, view: Tensor, tile: tuple[slice, ...], values: Tensor) -> None:
        """Write values ``(L, d, R * C)`` to their place."""
        place = view[tile]
        place.copy_(values.transpose(1, 2).view(place.shape))

    def scores(self, head: int, query: Tensor, key: Tensor, block) -> Tensor:
        """``(L, n, R * C)``, in units of log 2."""
        scores = block.bias(head).view(*key.shape[:2], -1)
        return add_product(scores, key, query.transpose(1, 2))


def add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``out += a @ b``, the product in the precision of its factors."""
    if a.dtype == out.dtype:
        return out.baddbmm_(a, b)
    return out.add_(torch.bmm(a, b))


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    position: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    evenly_spaced: bool,
    num_heads: int,
    max_scores: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmdat.ops.deformable_attention` and :class:`mmdat.ops.TableBias`.

    Args:
        max_scores: How many scores are held at a time, or numbers of any other tensor made on the way.

    Returns:
        The output ``(B, C, H, W)``, and for the backward pass the log-sum-exp of its scores, in units of log 2,
        ``(heads / G, B, G, H, W, 1)``.
    """
    with no_autocast(query.device):
        bias = TableBias(table, position, query_y, query_x, evenly_spaced)
        return _forward(_Work(query, key, value, bias, num_heads, max_scores), query)


def _forward(work: _Work, query: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(query)
    out_views = work.split(out).unbind()
    lse = torch.empty(work.heads, *out_views[0].shape[:-1], 1, dtype=work.dtype, device=query.device)
    lse_views = lse.unbind()
    for tile, lanes in work.tiles():
        queries = work.queries(tile, lanes)
        states: list[Optional[tuple[Tensor, ...]]] = [None] * work.heads
        for keys in work.key_blocks():
            block = work.table.block(lanes, *tile[2:], keys)
            for head in range(work.heads):
                s = work.scores(head, queries[head], work.key[head][lanes, keys], block)
                states[head] = _softmax_step(states[head], s, work.value[head][lanes, keys])
        for head, (top, total, acc) in enumerate(states):
            work.put(out_views[head], tile, acc.div_(total))
            work.put(lse_views[head], tile, total.log2_().add_(top))
    return out, lse


def _softmax_step(state, scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add a block of keys to (maximum, sum of exponentials, weighted sum of values); overwrites the scores."""
    top = scores.amax(1, keepdim=True)
    if state is not None:
        top = torch.maximum(top, state[0])
    p = scores.sub_(top).exp2_()
    total, value = p.sum(1, keepdim=True), value.transpose(1, 2)
    if state is None:
        return top, total, torch.bmm(value, p.to(value.dtype)).to(p.dtype)
    before, previous, acc = state
    shrink = before.sub_(top).exp2_()
    acc.mul_(shrink)
    add_product(acc, value, p.to(value.dtype))
    return top, total.add_(previous.mul_(shrink)), acc


def backward(
    needs: Sequence[bool],
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    position: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    evenly_spaced: bool,
    num_heads: int,
    max_scores: int,
) -> list[Optional[Tensor]]:
    """Gradients of query, key, value, table and position, those that ``needs`` names; see :func:`forward`."""
    with no_autocast(query.device):
        bias = TableBias(table, position, query_y, query_x, evenly_spaced)
        work = _Work(query, key, value, bias, num_heads, max_scores)
        return _backward(work, grad, out, lse, query, key, value, bias, needs)


def _backward(
    work: _Work,
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: TableBias,
    needs: Sequence[bool],
) -> list[Optional[Tensor]]:
    needs_query, needs_key, needs_value, needs_table, needs_position, *_ = needs
    needs_bias = needs_table or needs_position
    out_view, grad_view = work.split(out), work.split(grad)
    grad_query = torch.empty_like(query) if needs_query else None
    grad_query_view = work.split(grad_query) if needs_query else None
    shape = work.heads, *work.key[0].shape
    grad_key = key.new_zeros(shape, dtype=work.dtype) if needs_key else None
    grad_value = value.new_zeros(shape, dtype=work.dtype) if needs_value else None
    grad_table = work.table.entries.new_zeros(work.table.entries.shape[::-1]) if needs_table else None
    grad_position = torch.zeros_like(work.table.position) if needs_bias else None
    for tile, lanes in work.tiles():
        queries = work.queries(tile, lanes)
        grads = [work.take(view, tile, lanes) for view in grad_view]
        outs = [work.take(view, tile, lanes) for view in out_view]
        logs = [work.take(view, tile, lanes).transpose(1, 2) for view in lse]
        deltas = [(g * o).sum(-1, dtype=work.dtype)[:, None] for g, o in zip(grads, outs)]
        grad_queries = [torch.zeros_like(q.transpose(1, 2), dtype=work.dtype) for q in queries] if needs_query else None
        for keys in work.key_blocks():
            block = work.table.block(lanes, *tile[2:], keys)
            for head in range(work.heads):
                q, k, v = queries[head], work.key[head][lanes, keys], work.value[head][lanes, keys]
                p = work.scores(head, q, k, block).sub_(logs[head]).exp2_()
                if needs_value:
                    add_product(grad_value[head, lanes, keys], p.to(v.dtype), grads[head])
                if not (needs_query or needs_key or needs_bias):
                    continue
                ds = torch.bmm(v, grads[head].transpose(1, 2)).to(work.dtype).sub_(deltas[head]).mul_(p)
                if needs_bias:
                    grad_position[lanes, keys] += block.backward(head, ds.view(-1, *block.tile), grad_table).view(
                        *ds.shape[:2], 2
                    )
                ds = ds.to(q.dtype)
                if needs_query:
                    add_product(grad_queries[head], k.transpose(1, 2), ds)
                if needs_key:
                    add_product(grad_key[head, lanes, keys], ds, q)
        if needs_query:
            for view, g in zip(grad_query_view, grad_queries):
                work.put(view, tile, g.div_(LOG2_E))
    return [
        grad_query,
        work.from_keys(grad_key.mul_(work.scale), key) if needs_key else None,
        work.from_keys(grad_value, value) if needs_value else None,
        torch.empty_like(bias.table).copy_(work.table.table_grad(grad_table)) if needs_table else None,
        work.table.position_grad(grad_position).view(bias.position.shape).to(bias.position.dtype)
        if needs_position
        else None,
    ]
