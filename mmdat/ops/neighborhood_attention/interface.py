"""The public function."""
from typing import Optional

import torch
from torch import Tensor

from ..budget import scores_at_a_time
from ..implementation import check_implementation, is_compiling
from .naive import naive_neighborhood_attention
from .operator import tiled_neighborhood_attention


def neighborhood_attention(query: Tensor,
                           key: Tensor,
                           value: Tensor,
                           bias_table: Tensor,
                           num_heads: int,
                           kernel_size: int,
                           dropout: float = 0.0,
                           impl: str = 'fast',
                           chunk_bytes: Optional[int] = None) -> Tensor:
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
    dtype = torch.promote_types(query.dtype, bias_table.dtype)
    scores = scores_at_a_time(query.device, dtype, chunk_bytes)
    attend = torch.ops.mmdat.neighborhood_attention if is_compiling() else tiled_neighborhood_attention
    return attend(query, key, value, bias_table, num_heads, kernel_size, scores)
