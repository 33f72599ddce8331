"""The public function."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import is_compiling

from ..budget import scores_at_a_time
from ..implementation import check_implementation
from ..position_bias import PositionBias, TableBias
from .chunked import chunked_deformable_attention
from .naive import naive_deformable_attention
from .operator import tiled_deformable_attention


def deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias] = None,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention from a feature map to sampled keys, with a position bias.

    Args:
        query: ``(B, C, H, W)``.
        key: ``(B, C, Hk, Wk)``.
        value: ``(B, C, Hk, Wk)``.
        num_heads: Number of heads; divides ``C``. With ``G`` groups in ``bias``, head ``j`` belongs
            to group ``j // (num_heads / G)``.
        bias: What is added to the scores; see :mod:`mmdat.ops.position_bias`.
        dropout: Probability of dropping an attention weight.
        impl: ``'fast'``, whose memory is linear in the number of pixels, or ``'naive'``, the specification.
            The fast form of :class:`TableBias` has no second derivative.
        chunk_bytes: How many bytes of scores the fast form holds at a time; see :mod:`mmdat.ops.budget`.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If ``impl`` is unknown or ``chunk_bytes`` is not positive.
    """
    check_implementation(impl)
    if impl == 'naive':
        return naive_deformable_attention(query, key, value, num_heads, bias, dropout)
    if bias is None and not dropout:
        return _unbiased(query, key, value, num_heads)
    dtype = query.dtype if bias is None else torch.promote_types(query.dtype, bias.dtype)
    scores = scores_at_a_time(query.device, dtype, chunk_bytes)
    # With dropout, the generic form draws the same mask again in the backward pass.
    if not isinstance(bias, TableBias) or dropout or bias.query_y.requires_grad or bias.query_x.requires_grad:
        return chunked_deformable_attention(query, key, value, num_heads, bias, dropout, scores)
    attend = torch.ops.mmdat.deformable_attention if is_compiling() else tiled_deformable_attention
    return attend(query, key, value, *bias, num_heads, scores)[0]


def _unbiased(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    q, k, v = [x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3) for x in (query, key, value)]
    # PyTorch takes a form that holds all scores where the channels do not follow each other in memory.
    q, k, v = [x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v)]
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(query.shape)
