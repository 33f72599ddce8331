"""The tiled form with its gradient: as a function, and as an operator for compilers."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from ..autograd import Passes, above_operators
from ..custom_op import register
from ..finite import known_to_hold_nonfinite
from ..position_bias import TableBias
from . import chunked, tiled


def _forward(
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
    """By tiles, or where NaN and infinity must stay where they belong, by chunks, which need no log-sum-exp."""
    if not known_to_hold_nonfinite(query, key, value, table, position):
        bias = table, position, query_y, query_x, evenly_spaced
        return tiled.forward(query, key, value, *bias, num_heads, max_scores)
    bias = TableBias, table, position, query_y, query_x, evenly_spaced
    (out,) = chunked.forward(query, key, value, num_heads, 0.0, max_scores, *bias)
    return out, _fake_forward(query, key, value, table, position)[1].fill_(torch.nan)


def _backward(
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
    if not known_to_hold_nonfinite(query, key, value, table, position):
        bias = table, position, query_y, query_x, evenly_spaced
        return tiled.backward(needs, grad, out, lse, query, key, value, *bias, num_heads, max_scores)
    of_query, of_key, of_value, of_table, of_position, *_ = needs
    maps, bias = (of_query, of_key, of_value), (of_table, of_position, False, False, False)
    args = query, key, value, num_heads, 0.0, max_scores, TableBias, table, position, query_y, query_x, evenly_spaced
    grads = above_operators(chunked.backward, [*maps, False, False, False, False, *bias], grad, out, *args)
    return [*grads[:3], *grads[7:9]]


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, table: Tensor, position: Tensor, *options):
    groups = position.shape[1]
    shape = table.shape[0] // groups, query.shape[0], groups, *query.shape[2:], 1  # len() would fix the batch
    return torch.empty_like(query), query.new_empty(shape, dtype=tiled.compute_dtype(query, position))


tiled_deformable_attention = Passes('deformable_attention', _forward, _backward)
#: For compilers.
deformable_attention_operator = register(
    tiled_deformable_attention,
    'Tensor query, Tensor key, Tensor value, Tensor table, Tensor position, Tensor query_y, Tensor query_x, '
    'bool evenly_spaced, int num_heads, int max_scores',
    ('out', 'lse'),
    _fake_forward,
)
