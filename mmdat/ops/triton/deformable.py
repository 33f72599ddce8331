"""Deformable attention with a bias table through the kernels of ``deformable_kernels.py``."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..position_bias import TableBias
from .common import LN2, LOG2E
from .deformable_kernels import forward_kernel, key_gradients_kernel, query_gradient_kernel
from .launch import from_rows, launch, precision, to_rows
from .settings import Settings, generation_of, tiles

#: Copies of the table's gradient: with one, programs would wait for each other to add to the same entries.
COPIES = 8

#: About how many programs the key-major kernel is cut into; where keys are few, several share them.
PROGRAMS = 512


class Cells(NamedTuple):
    """A bias in the form that the kernels read.

    Attributes:
        cells: Coefficients of the table's cells in words of 8 bytes, those of float32 in two.
        row, col: Size of the cells of a head.
        origin: Where the cell is whose middle is coordinate 0.
        query_y, query_x: Coordinates ``(H,)`` and ``(W,)`` in cells.
        key_y, key_x: Coordinates ``(B * G, N)`` in cells.
    """

    cells: Tensor
    rows: int
    cols: int
    origin: int
    query_y: Tensor
    query_x: Tensor
    key_y: Tensor
    key_x: Tensor

    @property
    def pointer(self) -> Tensor:
        """The cells from the origin on, so that coordinates may be negative."""
        return self.cells.view(-1)[self.origin :]


def to_cells(bias: TableBias, half: bool) -> Cells:
    """Prepare a bias for the kernels."""
    position = bias.position.flatten(2, 3).flatten(0, 1)
    axes = [
        _axis(size, query, key)
        for size, query, key in zip(bias.table.shape[1:], (bias.query_y, bias.query_x), position.unbind(-1))
    ]
    # As many zeros around the table as queries and keys can reach: see _axis.
    before = [_origin(size) - _centre(size) for size in bias.table.shape[1:]]
    counts = [2 * size + 3 for size in bias.table.shape[1:]]
    after = [count + 1 - b - size for count, b, size in zip(counts, before, bias.table.shape[1:])]
    table = F.pad(bias.table.float() * LOG2E, (before[1], after[1], before[0], after[0]))
    left, right = table[..., :-1], table[..., 1:]
    plus, minus = (left + right) / 2, right - left
    one, by_y = (plus[:, :-1] + plus[:, 1:]) / 2, plus[:, 1:] - plus[:, :-1]
    by_x, by_xy = (minus[:, :-1] + minus[:, 1:]) / 2, minus[:, 1:] - minus[:, :-1]
    cells = torch.stack([one, by_x, by_y, by_xy], -1).to(torch.float16 if half else torch.float32)
    origin = _origin(bias.table.shape[1]) * counts[1] + _origin(bias.table.shape[2])
    (query_y, key_y), (query_x, key_x) = axes
    return Cells(cells.view(torch.int64), *counts, origin * (1 if half else 2), query_y, query_x, key_y, key_x)


def _centre(size: int) -> int:
    """The entry at (or just before) displacement zero."""
    return (size - 1) // 2


def _origin(size: int) -> int:
    return size + 1


def _axis(size: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates of queries and keys in cells of an axis of the table with ``size`` entries.

    Their difference is counted from the middle of the cell after the centre, small near the centre, where most
    reads are: float32 is exact to 1e-7 of it. Queries are at most 2 apart, which is (size - 1) / 2 in cells. So a key
    can be moved to where all queries see it ``size`` cells away, where the table's zeros are, if it is further.
    """
    cells = (size - 1) / 4
    query, key = query.float() * cells, key.float() * cells
    first = query.amin()
    key = torch.minimum(torch.maximum(key, first - (size + 1) / 2), first + size)
    return query + ((size - 1) / 2 - _centre(size) - 0.5), key.nan_to_num(0.0).contiguous()


def _taps(size: int, queries: int, side: int) -> int:
    """How many entries of an axis of the table a tile of ``side`` queries can touch for a key."""
    reach = (min(side, queries) - 1) / max(queries - 1, 1) * (size - 1) / 2
    return int(reach + 1e-3) + 3


class _Call:
    """The inputs as the kernels take them."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, bias: TableBias, num_heads: int):
        self.batch, self.groups = bias.position.shape[:2]
        self.heads = num_heads
        self.height, self.width = query.shape[2:]
        self.keys = key.shape[2] * key.shape[3]
        self.half = query.dtype != torch.float32
        self.scale = (query.shape[1] // num_heads) ** -0.5
        # Positions that are not numbers make all scores of their keys NaN, as in the specification.
        finite = bias.position.isfinite().all(-1).unsqueeze(2)
        key = key.unflatten(1, (self.groups, -1)).masked_fill(~finite, torch.nan).flatten(1, 2)
        self.maps = [to_rows(x, num_heads) for x in (query, key, value)]
        self.cells = to_cells(bias, self.half)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        cells = self.cells
        return (*self.maps, cells.pointer, cells.query_y, cells.query_x, cells.key_y, cells.key_x)

    @property
    def table_size(self) -> tuple[int, int]:
        """What the kernels need to find a cell."""
        return self.cells.rows * self.cells.cols, self.cells.cols

    def settings(self, kernel: str) -> Settings:
        rows = self.maps[0]
        return tiles(kernel, rows.dtype, rows.shape[-1], generation_of(rows.device))

    def options(self, chosen: Settings) -> dict[str, Any]:
        return dict(
            D=self.maps[0].shape[-1],
            KEYS=chosen.keys,
            HALF=self.half,
            num_warps=chosen.num_warps,
            num_stages=chosen.num_stages,
            **precision(self.maps[0]),
        )


def _refuse_if_deterministic() -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        "the gradient of the position-bias table has no deterministic algorithm with impl='triton': "
        "use impl='fast' (attn_impl='fast' of the backbone)"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    position: Tensor,
    query_y: Tensor,
    query_x: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmdat.ops.deformable_attention` and :class:`mmdat.ops.TableBias` (with ``even=True``).

    Returns:
        The output ``(B, C, H, W)``, and the log-sum-exp of its scores ``(B * heads, H * W)``, to the base of 2.
    """
    call = _Call(query, key, value, TableBias(table, position, query_y, query_x, True), num_heads)
    rows = torch.empty_like(call.maps[0])
    lse = query.new_empty(rows.shape[:2], dtype=torch.float32)
    if rows.numel():
        chosen = call.settings('queries')
        sizes = call.heads, call.heads // call.groups, rows.shape[1], call.width, call.keys, *call.table_size
        launch(
            forward_kernel,
            (-(-rows.shape[1] // chosen.queries), rows.shape[0]),
            *call.inputs,
            rows,
            lse,
            *sizes,
            call.scale * LOG2E,
            QUERIES=chosen.queries,
            **call.options(chosen),
        )
    return from_rows(rows, num_heads, query), lse


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
    num_heads: int,
) -> list[Tensor]:
    """Gradients of query, key, value, table and position; see :func:`forward`. All come together.

    Raises:
        RuntimeError: If a gradient of the table is needed and deterministic algorithms alone are allowed.
    """
    if needs[3]:
        _refuse_if_deterministic()
    call = _Call(query, key, value, TableBias(table, position, query_y, query_x, True), num_heads)
    grad, out = to_rows(grad, num_heads), to_rows(out, num_heads)
    delta, grad_query = torch.empty_like(lse), torch.empty_like(grad)
    chosen, key_chosen = call.settings('queries'), call.settings('keys')
    side = math.isqrt(key_chosen.queries)
    rows, queries = lse.shape
    blocks = -(-call.keys // key_chosen.keys)
    tiles = -(-call.height // side) * -(-call.width // side)
    parts = max(min(PROGRAMS // max(rows * blocks, 1), tiles), 1)
    like_keys = dict(dtype=torch.float32, device=query.device)
    grad_key, grad_value = [torch.zeros(parts, *call.maps[1].shape, **like_keys) for _ in range(2)]
    grad_key_y, grad_key_x = [torch.zeros(parts, rows, call.keys, **like_keys) for _ in range(2)]
    copies = min(COPIES, blocks * parts * call.batch) or 1
    grad_table = torch.zeros(copies, *table.shape, **like_keys)
    if queries and rows:
        heads = call.heads, call.heads // call.groups
        launch(
            query_gradient_kernel,
            (-(-queries // chosen.queries), rows),
            *call.inputs,
            out,
            lse,
            grad,
            delta,
            grad_query,
            *heads,
            queries,
            call.width,
            call.keys,
            *call.table_size,
            call.scale * LOG2E,
            call.scale,
            QUERIES=chosen.queries,
            **call.options(chosen),
        )
        launch(
            key_gradients_kernel,
            (blocks, rows, parts),
            *call.inputs,
            lse,
            grad,
            delta,
            grad_key,
            grad_value,
            grad_key_y,
            grad_key_x,
            grad_table,
            *heads,
            call.height,
            call.width,
            call.keys,
            *call.table_size,
            *table.shape[1:],
            *[_centre(size) for size in table.shape[1:]],
            *[_taps(*axis, side) for axis in zip(table.shape[1:], (call.height, call.width))],
            copies,
            call.scale * LOG2E,
            call.scale,
            adds_to=grad_table,
            SIDE=side,
            **call.options(key_chosen),
        )
    by_axis = [
        # The coefficients are in units of log 2; a key further on is a query further back.
        x.sum(0).view(call.batch, call.groups, -1, call.keys).sum(2) * ((1 - size) / 4 * LN2)
        for x, size in zip((grad_key_y, grad_key_x), table.shape[1:])
    ]
    return [
        from_rows(grad_query, num_heads, query),
        from_rows(grad_key.sum(0), num_heads, key),
        from_rows(grad_value.sum(0), num_heads, value),
        grad_table.sum(0).to(table.dtype),
        torch.stack(by_axis, -1).view(position.shape).to(position.dtype),
    ]
