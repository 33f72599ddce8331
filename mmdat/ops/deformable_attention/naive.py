"""The specification: plain deformable attention, with all scores at once."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from ..position_bias import PositionBias


def naive_deformable_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Optional[PositionBias], dropout: float
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`."""
    return attend(query, key, value, num_heads, None if bias is None else bias.evaluate(), dropout)


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Optional[Tensor], dropout: float) -> Tensor:
    """Attention of a map or some of its pixels ``(B, C, n)``; the bias is ``(B or 1, heads, queries, keys)``."""
    split = lambda x: x.flatten(2).unflatten(1, (num_heads, -1))  # noqa: E731  (B, heads, C / heads, pixels)
    q, k, v = split(query), split(key), split(value)
    scores = q.transpose(-1, -2) @ k * q.shape[2] ** -0.5
    if bias is not None:
        scores = scores + bias
    attention = F.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(v.dtype)
    return (v @ attention.transpose(-1, -2)).reshape(query.shape)
