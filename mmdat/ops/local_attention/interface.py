"""The public functions."""

from typing import Optional

import torch
from torch import Tensor

from mmdat.compat import is_compiling

from ..budget import scores_at_a_time
from ..implementation import check_implementation
from .naive import naive_neighborhood_attention, naive_window_attention
from .operator import tiled_local_attention


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    kernel_size: int,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention of each pixel to the ``kernel_size**2`` pixels around it.

    At the border the window is shifted inwards, so that each pixel has equally many keys.

    Args:
        query, key, value: ``(B, C, H, W)``, with ``H`` and ``W`` at least ``kernel_size``.
        bias_table: ``(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)``, indexed by
            key minus query.
        num_heads: Number of heads; divides ``C``.
        kernel_size: Odd side of the window.
        dropout: Probability of dropping an attention weight; only the naive form can, and takes over then.
        impl: ``'fast'``, or ``'naive'``, the specification. The fast form has no second derivative.
        chunk_bytes: How many bytes of scores the fast form holds at a time; see :mod:`mmdat.ops.budget`.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If ``impl`` is unknown or ``chunk_bytes`` is not positive.
    """
    check_implementation(impl)
    if impl == 'naive' or dropout:
        return naive_neighborhood_attention(query, key, value, bias_table, num_heads, kernel_size, dropout)
    return _attend(query, key, value, bias_table, num_heads, 'neighborhood', kernel_size, 0, chunk_bytes)


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    window_size: int,
    shift: int = 0,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention within non-overlapping windows.

    Args:
        query, key, value: ``(B, C, H, W)``; ``window_size`` divides ``H`` and ``W``.
        bias_table: ``((2 * window_size - 1)**2, num_heads)``, indexed by query minus key.
        num_heads: Number of heads; divides ``C``.
        window_size: Side of the windows.
        shift: How far right and down the windows are shifted; those that the border of the map cuts are smaller.
        dropout: Probability of dropping an attention weight; only the naive form can, and takes over then.
        impl: ``'fast'``, or ``'naive'``, the specification. The fast form has no second derivative.
        chunk_bytes: How many bytes of scores the fast form holds at a time; see :mod:`mmdat.ops.budget`.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If ``impl`` is unknown or ``chunk_bytes`` is not positive.
    """
    check_implementation(impl)
    if impl == 'naive' or dropout:
        return naive_window_attention(query, key, value, bias_table, num_heads, window_size, shift, dropout)
    side = 2 * window_size - 1
    table = bias_table.t().unflatten(1, (side, side)).flip(1, 2)  # by key minus query
    return _attend(query, key, value, table, num_heads, 'window', window_size, shift, chunk_bytes)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    chunk_bytes: Optional[int],
) -> Tensor:
    scores = scores_at_a_time(query.device, torch.promote_types(query.dtype, table.dtype), chunk_bytes)
    attend = torch.ops.mmdat.local_attention if is_compiling() else tiled_local_attention
    return attend(query, key, value, table, num_heads, pattern, size, shift, scores)
