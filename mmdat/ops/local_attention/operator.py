"""The tiled form with its gradient: as a function, and as an operator for compilers."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from ..autograd import Passes, above_operators
from ..custom_op import register
from ..finite import known_to_hold_nonfinite
from . import tiled
from .naive import naive_neighborhood_attention


def _forward(
    query: Tensor, key: Tensor, value: Tensor, table: Tensor, num_heads: int, pattern: str, size: int, *options: int
) -> tuple[Tensor]:
    """By tiles, or where NaN and infinity must stay where they belong, in the plain form, image by image.

    Windows are tiles, so the plain form spreads them just as far.
    """
    if pattern == 'window' or not known_to_hold_nonfinite(query, key, value):
        return tiled.forward(query, key, value, table, num_heads, pattern, size, *options)
    out = torch.empty_like(query)
    for image in range(len(query)):
        maps = [x[image : image + 1] for x in (query, key, value)]
        out[image : image + 1] = naive_neighborhood_attention(*maps, table, num_heads, size, 0.0)
    return (out,)


def _backward(needs: Sequence[bool], grad: Tensor, out: Tensor, *args: Any) -> list[Optional[Tensor]]:
    query, key, value, table, num_heads, pattern, size, *_ = args
    if pattern == 'window' or not known_to_hold_nonfinite(query, key, value):
        return tiled.backward(needs, grad, out, *args)
    return above_operators(_plain_backward, needs[:4], grad, query, key, value, table, num_heads, size)


def _plain_backward(
    needs: Sequence[bool],
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    size: int,
) -> list[Optional[Tensor]]:
    """Gradients by autograd of the plain form, image by image."""
    grads = [torch.zeros_like(x) if need else None for x, need in zip((query, key, value, table), needs)]
    for image in range(len(query)):
        some = slice(image, image + 1)
        leaves = [
            x.detach().requires_grad_(need) for x, need in zip((query[some], key[some], value[some], table), needs)
        ]
        result = naive_neighborhood_attention(*leaves, num_heads, size, 0.0)
        wanted = [i for i, need in enumerate(needs) if need]
        parts = torch.autograd.grad(result, [leaves[i] for i in wanted], grad[some])
        for i, part in zip(wanted, parts):
            whole = grads[i] if i == 3 else grads[i][some]
            whole += part
    return grads


tiled_neighborhood_attention = Passes('neighborhood_attention', _forward, _backward)
tiled_window_attention = Passes('window_attention', _forward, _backward)
#: For compilers.
local_attention_operator = register(
    Passes('local_attention', _forward, _backward),
    'Tensor query, Tensor key, Tensor value, Tensor table, int num_heads, str pattern, int size, int shift, '
    'int max_scores',
    ('out',),
    lambda query, *args: (torch.empty_like(query),),
)
