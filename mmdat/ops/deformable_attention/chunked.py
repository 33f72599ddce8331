"""Deformable attention with any bias, some rows of queries at a time, computed again for the backward pass."""

from typing import Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..position_bias import PositionBias
from .naive import attend


def chunked_deformable_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Optional[PositionBias], dropout: float, scores: int
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`; ``scores`` are held at a time, at least those of one row."""
    batch, _, height, width = query.shape
    rows = max(scores // (batch * num_heads * width * key.shape[2] * key.shape[3]), 1)

    def attend_rows(query: Tensor, key: Tensor, value: Tensor, start: int, stop: int) -> Tensor:
        chunk_bias = None if bias is None else bias.rows(start, stop)
        return attend(query[:, :, start:stop], key, value, num_heads, chunk_bias, dropout)

    chunks = []
    for start in range(0, height, rows):
        args = query, key, value, start, min(start + rows, height)
        if torch.is_grad_enabled():
            chunks.append(checkpoint(attend_rows, *args, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            chunks.append(attend_rows(*args))
    return torch.cat(chunks, 2)
