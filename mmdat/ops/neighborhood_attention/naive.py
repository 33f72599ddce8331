"""The specification: neighbourhood attention with the keys of each pixel gathered."""
import torch
import torch.nn.functional as F
from torch import Tensor


def naive_neighborhood_attention(query: Tensor,
                                 key: Tensor,
                                 value: Tensor,
                                 bias_table: Tensor,
                                 num_heads: int,
                                 kernel_size: int,
                                 dropout: float = 0.0) -> Tensor:
    """See :func:`mmdat.ops.neighborhood_attention`."""
    height, width = query.shape[2:]
    rows, cols = neighbors(height, kernel_size, query.device), neighbors(width, kernel_size, query.device)

    def gather(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H, W, heads, kernel_size**2, channels of a head)."""
        x = x.permute(0, 2, 3, 1)[:, rows[:, None, :, None], cols[None, :, None, :]]
        return x.flatten(3, 4).unflatten(-1, (num_heads, -1)).transpose(3, 4)

    q = query.permute(0, 2, 3, 1).unflatten(-1, (num_heads, 1, -1))
    scores = q @ gather(key).transpose(-1, -2) * q.shape[-1]**-0.5
    row_index = rows - torch.arange(height, device=rows.device)[:, None] + kernel_size - 1
    col_index = cols - torch.arange(width, device=cols.device)[:, None] + kernel_size - 1
    bias = bias_table[:, row_index[:, None, :, None], col_index[None, :, None, :]].flatten(3)
    scores = scores + bias.permute(1, 2, 0, 3).unsqueeze(-2)
    attention = F.dropout(scores.softmax(-1), dropout).to(value.dtype)
    return (attention @ gather(value)).flatten(3).permute(0, 3, 1, 2)


def neighbors(size: int, kernel_size: int, device: torch.device) -> Tensor:
    """Indices of the keys of each query along one axis, ``(size, kernel_size)``."""
    first = (torch.arange(size, device=device) - kernel_size // 2).clamp(0, size - kernel_size)
    return first[:, None] + torch.arange(kernel_size, device=device)
