"""Deformable attention of tokens, as vision transformers hold them."""

import math
from collections.abc import Sequence
from typing import Any, Optional

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .deformable import DeformableAttention


class DeformableTokenAttention(nn.Module):
    """:class:`DeformableAttention` of tokens ``(B, N, C)`` that are the cells of a map, row by row.

    Tokens in front of them (a class token, registers) lie nowhere on the map: they neither query nor are sampled, and
    their output is zero, so that a shortcut around the layer leaves them as they are.

    Args:
        in_channels: Channels of a token.
        num_prefix_tokens: Tokens in front of those of the map.
        kwargs: Other arguments of :class:`DeformableAttention`.

    Attributes:
        attention: The :class:`DeformableAttention`.
    """

    def __init__(self, in_channels: int, num_prefix_tokens: int = 0, **kwargs: Any):
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.attention = DeformableAttention(in_channels, **kwargs)

    def forward(self, x: Tensor, size: Optional[Sequence[int]] = None) -> Tensor:
        """``(B, N, C)`` to ``(B, N, C)``.

        Args:
            x: The tokens.
            size: ``(H, W)`` of the map; by default its sides are equal.

        Raises:
            ValueError: If the tokens behind the prefix do not fill a map of this size.
        """
        tokens = x[:, self.num_prefix_tokens :]
        count, dims = tokens.shape[1], self.attention.dims
        size = (round(count ** (1 / dims)),) * dims if size is None else tuple(size)
        if math.prod(size) != count:
            raise ValueError(
                f'{count} tokens behind {self.num_prefix_tokens} in front do not fill a map of {size}: '
                f'check size and num_prefix_tokens'
            )
        out = self.attention(tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
        return F.pad(out, (0, 0, self.num_prefix_tokens, 0))
