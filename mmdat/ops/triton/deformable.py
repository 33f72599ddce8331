"""Deformable attention with a bias table through the kernels of ``deformable_kernels.py``."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..position_bias import TableBias
from .common import LN2, LOG2E
from .deformable_kernels import (
    cells_kernel,
    coordinates_kernel,
    forward_kernel,
    key_gradients_kernel,
    query_gradient_kernel,
)
from .launch import from_pixels, laid_out, launch, padded, precision, to_pixels
from .settings import Settings, generation_of, tiles

#: Copies of the table's gradient: with one, programs would wait for each other to add to the same entries.
COPIES = 8

#: How many cells or coordinates a program of the kernels that prepare them takes.
BLOCK = 256

#: About how many programs the key-major kernel is cut into; where keys are few, several share them.
PROGRAMS = 512


class Cells(NamedTuple):
    """A bias in the form that the kernels read.

    Attributes:
        cells: Coefficients of the table's cells ``(heads, rows, cols)`` in words of 8 bytes, those of float32 in two.
        rows, cols: Cells of a head.
        origin: Where the cell is whose middle is coordinate 0.
        queries: Coordinates of the map's rows and columns in cells, one after another ``(H + W,)``.
        keys: Coordinates of the keys in cells ``(2, B * G, N)``.
        not_finite: NaN for positions that are not finite, else 0, ``(B * G, N)``.
    """

    cells: Tensor
    rows: int
    cols: int
    origin: int
    queries: Tensor
    keys: Tensor
    not_finite: Tensor


def to_cells(bias: TableBias, dtype: torch.dtype) -> Cells:
    """Prepare a bias for maps of a dtype."""
    heads, *sizes = bias.table.shape
    # As many zeros around the table as queries and keys can reach: see coordinates_kernel.
    rows, cols = [2 * size + 3 for size in sizes]
    origins = [size + 1 for size in sizes]
    before = [origin - _centre(size) for origin, size in zip(origins, sizes)]
    half = dtype != torch.float32
    cells = bias.table.new_empty(heads, rows, cols, 4, dtype=torch.float16 if half else torch.float32)
    blocks = -(-rows * cols // BLOCK)
    launch(cells_kernel, (blocks, heads), bias.table.contiguous(), cells, *sizes, rows, cols, *before, BLOCK=BLOCK)

    height, width = len(bias.query_y), len(bias.query_x)
    position = bias.position.flatten(2, 3).flatten(0, 1).contiguous()
    lanes, num_keys = position.shape[:2]
    queries, keys = [position.new_empty(shape, dtype=torch.float32) for shape in (height + width, (2, lanes, num_keys))]
    not_finite = position.new_empty(lanes, num_keys, dtype=dtype)
    blocks = -(-max(lanes * num_keys, height, width) // BLOCK)
    axes = bias.query_y.contiguous(), bias.query_x.contiguous()
    sizes = height, width, lanes, num_keys, *sizes
    launch(coordinates_kernel, (blocks, 2), position, *axes, keys, queries, not_finite, *sizes, BLOCK=BLOCK)
    origin = (origins[0] * cols + origins[1]) * (1 if half else 2)
    return Cells(cells.view(torch.int64).flatten(), rows, cols, origin, queries, keys, not_finite)


def _centre(size: int) -> int:
    """The entry at (or just before) displacement zero."""
    return (size - 1) // 2


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
        self.channels = query.shape[1] // num_heads
        self.scale = self.channels**-0.5
        self.cells = to_cells(bias, query.dtype)
        # Positions that are not finite make all scores of their keys NaN, as in the specification.
        not_finite = self.cells.not_finite.view(self.batch, self.groups, 1, *key.shape[2:])
        key = (key.unflatten(1, (self.groups, -1)) + not_finite).flatten(1, 2)
        self.maps = [to_pixels(x).contiguous() for x in (query, key, value)]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        cells = self.cells
        query_y, query_x = cells.queries[: self.height], cells.queries[self.height :]
        # From the origin on, so that coordinates may be negative.
        return (*self.maps, cells.cells[cells.origin :], query_y, query_x, *cells.keys)

    @property
    def table_size(self) -> tuple[int, int]:
        """What the kernels need to find a cell."""
        return self.cells.rows * self.cells.cols, self.cells.cols

    def settings(self, kernel: str) -> Settings:
        query = self.maps[0]
        return tiles(kernel, query.dtype, padded(self.channels), generation_of(query.device))

    def options(self, chosen: Settings) -> dict[str, Any]:
        return dict(
            CHANNELS=self.channels,
            D=padded(self.channels),
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
    lse = query.new_empty(len(query) * num_heads, query.shape[2] * query.shape[3], dtype=torch.float32)
    if not (query.numel() and key.numel()):
        return torch.zeros_like(query), lse.fill_(-math.inf)
    call = _Call(query, key, value, TableBias(table, position, query_y, query_x, True), num_heads)
    out = torch.empty_like(call.maps[0])
    chosen = call.settings('queries')
    rows, queries = lse.shape
    sizes = call.heads, call.heads // call.groups, queries, call.width, call.keys, *call.table_size
    launch(
        forward_kernel,
        (-(-queries // chosen.queries), rows),
        *call.inputs,
        out,
        lse,
        *sizes,
        call.scale * LOG2E,
        QUERIES=chosen.queries,
        **call.options(chosen),
    )
    return from_pixels(out, query), lse


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
    if not (query.numel() and key.numel()):
        return [torch.zeros_like(x) for x in (query, key, value, table, position)]
    call = _Call(query, key, value, TableBias(table, position, query_y, query_x, True), num_heads)
    grad, out = to_pixels(grad).contiguous(), to_pixels(out).contiguous()
    delta, grad_query = torch.empty_like(lse), torch.empty_like(grad)
    chosen, key_chosen = call.settings('queries'), call.settings('keys')
    side = math.isqrt(key_chosen.queries)
    rows, queries = lse.shape
    blocks = -(-call.keys // key_chosen.keys)
    tiles = -(-call.height // side) * -(-call.width // side)
    parts = max(min(PROGRAMS // max(rows * blocks, 1), tiles), 1)
    like_keys = dict(dtype=torch.float32, device=query.device)
    # Not two parts of one tensor: what an operator returns must not share memory.
    grad_key, grad_value = [torch.empty(parts, *call.maps[1].shape, **like_keys) for _ in range(2)]
    grad_position = torch.empty(2, parts, rows, call.keys, **like_keys)
    copies = min(COPIES, blocks * parts * call.batch) or 1
    grad_table = torch.zeros(copies, *table.shape, **like_keys)
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
        *grad_position,
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
        # The coefficients are in units of log 2; a key further on is a query further back.
        *[(1 - size) / 4 * LN2 for size in table.shape[1:]],
        adds_to=grad_table,
        SIDE=side,
        **call.options(key_chosen),
    )
    of_heads = grad_position.view(2, parts, call.batch, call.groups, -1, call.keys)
    return [
        from_pixels(grad_query, query),
        from_pixels(grad_key.sum(0) if parts > 1 else grad_key[0], key),
        from_pixels(grad_value.sum(0) if parts > 1 else grad_value[0], value),
        laid_out(grad_table.sum(0), table),
        laid_out(of_heads.sum((1, 4)).permute(1, 2, 3, 0).reshape(position.shape), position),
    ]
