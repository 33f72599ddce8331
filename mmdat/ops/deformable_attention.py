"""Attention of every pixel to the sampled keys (DAT, section 3.2, eqs. 5 to 7)."""
from typing import Optional, Union

import torch.nn.functional as F
from torch import Tensor

from .position_bias import FixedBias, LogBias, TableBias

PositionBias = Union[TableBias, LogBias, FixedBias]


def deformable_attention(query: Tensor,
                         key: Tensor,
                         value: Tensor,
                         num_heads: int,
                         bias: Optional[PositionBias] = None,
                         dropout: float = 0.0) -> Tensor:
    """Multi-head attention from a feature map to sampled keys, with a position bias.

    Args:
        query: ``(B, C, H, W)``.
        key: ``(B, C, Hk, Wk)``.
        value: ``(B, C, Hk, Wk)``.
        num_heads: Number of heads; divides ``C``. With ``G`` groups in ``bias``, head ``j`` belongs
            to group ``j // (num_heads / G)``.
        bias: What is added to the scores; see :mod:`mmdat.ops.position_bias`.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B, C, H, W)``.
    """
    height = query.shape[2]
    split = lambda x: x.flatten(2).unflatten(1, (num_heads, -1))  # noqa: E731  (B, heads, C / heads, pixels)
    q, k, v = split(query), split(key), split(value)
    scores = q.transpose(-1, -2) @ k * q.shape[2]**-0.5
    if bias is not None:
        scores = scores + bias.rows(0, height)
    attention = F.dropout(scores.softmax(-1), dropout).to(v.dtype)
    return (v @ attention.transpose(-1, -2)).reshape(query.shape)
