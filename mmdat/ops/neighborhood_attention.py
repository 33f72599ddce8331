"""Attention of every pixel to the pixels around it (NAT; stages 1 to 3 of DAT++)."""
import torch
import torch.nn.functional as F
from torch import Tensor


def neighborhood_attention(query: Tensor,
                           key: Tensor,
                           value: Tensor,
                           bias_table: Tensor,
                           num_heads: int,
                           kernel_size: int,
                           dropout: float = 0.0) -> Tensor:
    """Multi-head attention of each pixel to the ``kernel_size**2`` pixels around it.

    At the border the window is shifted inwards, so that each pixel has equally many keys.

    Args:
        query, key, value: ``(B, C, H, W)``, with ``H`` and ``W`` at least ``kernel_size``.
        bias_table: ``(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)``, indexed by
            key minus query.
        num_heads: Number of heads; divides ``C``.
        kernel_size: Odd side of the window.
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B, C, H, W)``.
    """
    batch, channels, height, width = query.shape
    rows, cols = neighbors(height, kernel_size, query.device), neighbors(width, kernel_size, query.device)

    def gather(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, heads, channels of a head, H, W, kernel_size**2)."""
        x = x[:, :, rows[:, None, :, None], cols[None, :, None, :]]
        return x.flatten(4).unflatten(1, (num_heads, -1))

    q = query.unflatten(1, (num_heads, -1)).unsqueeze(-1)
    scores = (q * gather(key)).sum(2) * q.shape[2]**-0.5
    row_index = rows - torch.arange(height, device=rows.device)[:, None] + kernel_size - 1
    col_index = cols - torch.arange(width, device=cols.device)[:, None] + kernel_size - 1
    bias = bias_table[:, row_index[:, None, :, None], col_index[None, :, None, :]].flatten(3)
    attention = F.dropout((scores + bias).softmax(-1), dropout).to(value.dtype)
    return (attention.unsqueeze(2) * gather(value)).sum(-1).reshape(query.shape)


def neighbors(size: int, kernel_size: int, device: torch.device) -> Tensor:
    """Indices of the keys of each query along one axis, ``(size, kernel_size)``."""
    first = (torch.arange(size, device=device) - kernel_size // 2).clamp(0, size - kernel_size)
    return first[:, None] + torch.arange(kernel_size, device=device)
