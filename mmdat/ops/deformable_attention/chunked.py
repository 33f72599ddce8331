"""Deformable attention with any bias, some queries at a time, computed again for the backward pass."""

from typing import Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..position_bias import PositionBias
from .naive import attend


def chunked_deformable_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: Optional[PositionBias], dropout: float, scores: int
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`; ``scores`` are held at a time, at least those of one query."""
    pixels = query.flatten(2)
    numbers = num_heads if bias is None else max(num_heads, bias.numbers)
    size = max(scores // (len(query) * numbers * key.shape[2] * key.shape[3]), 1)

    def attend_chunk(pixels: Tensor, key: Tensor, value: Tensor, chunk: slice) -> Tensor:
        return attend(pixels[..., chunk], key, value, num_heads, None if bias is None else bias.of(chunk), dropout)

    chunks = []
    for start in range(0, pixels.shape[2], size):
        args = pixels, key, value, slice(start, start + size)
        if torch.is_grad_enabled():
            chunks.append(checkpoint(attend_chunk, *args, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            chunks.append(attend_chunk(*args))
    return torch.cat(chunks, 2).view(query.shape)
