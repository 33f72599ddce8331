"""Attention to pixels nearby through the kernels of ``local_kernels.py``."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Optional

import torch
from torch import Tensor

from ..local_attention.tiles import neighborhoods
from .common import LOG2E
from .launch import from_pixels, laid_out, launch, padded, pixel_stride, precision, to_pixels
from .local_kernels import bias_gradient_kernel, forward_kernel, key_gradients_kernel, query_gradient_kernel
from .settings import SIDE, generation_of, tiles

#: About how many programs share the sums that make the table's gradient.
PROGRAMS = 512


class _Call:
    """The inputs as the kernels take them, and how the map is cut."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        table: Tensor,
        num_heads: int,
        pattern: str,
        size: int,
        shift: int,
    ):
        self.batch, channels, self.height, self.width = query.shape
        self.heads, self.size = num_heads, size
        self.channels = channels // num_heads
        self.scale = self.channels**-0.5
        self.maps = [to_pixels(x) for x in (query, key, value)]
        if len({pixel_stride(x) for x in self.maps}) > 1:
            self.maps = [x.contiguous() for x in self.maps]
        self.table = (table.float() * LOG2E).contiguous()
        self.window = pattern == 'window'
        self.parts = -(-size // SIDE) if self.window else 1
        if self.window:
            self.before = [size - shift if shift else 0] * 2
            self.tiles = [-(-(length + b) // size) * self.parts for length, b in zip(query.shape[2:], self.before)]
            self.margin, key_side = 0, size
        else:
            axes = [neighborhoods(length, size) for length in query.shape[2:]]
            self.before, self.tiles = [axis.before for axis in axes], [axis.tiles for axis in axes]
            self.margin, key_side = axes[0].margin, axes[0].key_side
        self.settings = tiles('local', query.dtype, padded(self.channels), generation_of(query.device))
        self.rows = self.settings.keys // SIDE
        self.blocks = -(-key_side // self.rows), -(-key_side // SIDE)

    @property
    def sizes(self) -> tuple[int, ...]:
        return pixel_stride(self.maps[0]), self.heads, self.height, self.width, *self.before

    @property
    def programs(self) -> tuple[int, int]:
        return self.tiles[0] * self.tiles[1], self.batch * self.heads

    @property
    def options(self) -> dict[str, Any]:
        return dict(
            num_warps=self.settings.num_warps,
            num_stages=self.settings.num_stages,
            CHANNELS=self.channels,
            D=padded(self.channels),
            SIZE=self.size,
            WINDOW=self.window,
            SIDE=SIDE,
            PARTS=self.parts,
            ROWS=self.rows,
            **precision(self.maps[0]),
        )

    @property
    def key_options(self) -> dict[str, Any]:
        return dict(MARGIN=self.margin, BLOCKS_Y=self.blocks[0], BLOCKS_X=self.blocks[1])


@lru_cache(maxsize=32)
def _ways(size: int, parts: int, margin: int, rows: int, blocks: tuple[int, int], device: torch.device) -> Tensor:
    """The table's entry (its length where there is none) for each pair of slots, ``(ways, queries, keys)``."""

    def apart(length: int, count: int) -> Tensor:
        """Along an axis, the table's index for each part of a window, block of keys of a length, query and key."""
        starts = torch.arange(count) * length - margin
        queries = torch.arange(parts)[:, None] * SIDE + torch.arange(SIDE)
        keys = starts[:, None, None] + torch.arange(length)
        return keys - queries[:, None, :, None] + size - 1

    y, x = apart(rows, blocks[0]), apart(SIDE, blocks[1])
    y, x = y[:, None, :, None, :, None, :, None], x[None, :, None, :, None, :, None, :]
    side = 2 * size - 1
    inside = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    return torch.where(inside, y * side + x, side * side).reshape(-1, SIDE**2, rows * SIDE).to(device)


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
) -> tuple[Tensor, Tensor]:
    """See :func:`mmdat.ops.local_attention.tiled.forward`.

    Returns:
        The output ``(B, C, H, W)``, and the log-sum-exp of its scores ``(B * heads, H * W)``, to the base of 2.
    """
    call = _Call(query, key, value, table, num_heads, pattern, size, shift)
    out = query.new_empty(call.maps[0].shape)
    lse = query.new_empty(call.batch * num_heads, call.height * call.width, dtype=torch.float32)
    if out.numel():
        launch(
            forward_kernel,
            call.programs,
            *call.maps,
            call.table,
            out,
            lse,
            *call.sizes,
            call.tiles[1],
            call.scale * LOG2E,
            **call.options,
            **call.key_options,
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
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
) -> list[Optional[Tensor]]:
    """Gradients of query, key, value and table, those that ``needs`` names; see :func:`forward`."""
    call = _Call(query, key, value, table, num_heads, pattern, size, shift)
    if not lse.numel():
        return [torch.zeros_like(x) if need else None for x, need in zip((query, key, value, table), needs)]
    grad, out = to_pixels(grad).contiguous(), to_pixels(out).contiguous()
    delta, grad_query = torch.empty_like(lse), torch.empty_like(grad)
    scales = call.scale * LOG2E, call.scale
    inputs = *call.maps, call.table
    # Also where no gradient of the query is needed: the others need delta.
    launch(
        query_gradient_kernel,
        call.programs,
        *inputs,
        out,
        lse,
        grad,
        delta,
        grad_query,
        *call.sizes,
        call.tiles[1],
        *scales,
        **call.options,
        **call.key_options,
    )
    grad_key = grad_value = grad_table = None
    if needs[1] or needs[2]:
        grad_key, grad_value = torch.empty_like(grad), torch.empty_like(grad)
        launch(
            key_gradients_kernel,
            call.programs,
            *inputs,
            lse,
            grad,
            delta,
            grad_key,
            grad_value,
            *call.sizes,
            call.tiles[1],
            *scales,
            **call.options,
        )
    if needs[3]:
        grad_table = laid_out(_table_gradient(call, inputs, lse, grad, delta).view(table.shape), table)
    return [
        from_pixels(grad_query, query) if needs[0] else None,
        from_pixels(grad_key, key) if needs[1] else None,
        from_pixels(grad_value, value) if needs[2] else None,
        grad_table,
    ]


def _table_gradient(call: _Call, inputs: Sequence[Tensor], lse: Tensor, grad: Tensor, delta: Tensor) -> Tensor:
    ways = _ways(call.size, call.parts, call.margin, call.rows, call.blocks, grad.device)
    tiles = call.batch * (call.tiles[0] // call.parts) * (call.tiles[1] // call.parts)
    parts = max(min(PROGRAMS // (call.heads * len(ways)), tiles), 1)
    grad_bias = grad.new_empty(parts, call.heads, *ways.shape, dtype=torch.float32)
    launch(
        bias_gradient_kernel,
        (parts, call.heads, len(ways)),
        *inputs,
        lse,
        grad,
        delta,
        grad_bias,
        *call.sizes,
        *call.tiles,
        call.batch,
        call.scale * LOG2E,
        **call.options,
        **call.key_options,
    )
    entries = call.table[0].numel()
    sums = grad_bias.new_zeros(call.heads, entries + 1)  # one more for pairs that never see each other
    sums.index_add_(1, ways.flatten(), grad_bias.sum(0).flatten(1))
    return sums[:, :-1].contiguous()
