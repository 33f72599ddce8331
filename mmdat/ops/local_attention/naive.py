"""The specifications."""

import torch
import torch.nn.functional as F
from torch import Tensor


def naive_neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    kernel_size: int,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.neighborhood_attention`: the keys of each pixel are gathered."""
    height, width = query.shape[2:]
    rows, cols = neighbors(height, kernel_size, query.device), neighbors(width, kernel_size, query.device)

    def gather(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H, W, heads, kernel_size**2, channels of a head)."""
        x = x.permute(0, 2, 3, 1)[:, rows[:, None, :, None], cols[None, :, None, :]]
        return x.flatten(3, 4).unflatten(-1, (num_heads, -1)).transpose(3, 4)

    q = query.permute(0, 2, 3, 1).unflatten(-1, (num_heads, 1, -1))
    scores = q @ gather(key).transpose(-1, -2) * q.shape[-1] ** -0.5
    row_index = rows - torch.arange(height, device=rows.device)[:, None] + kernel_size - 1
    col_index = cols - torch.arange(width, device=cols.device)[:, None] + kernel_size - 1
    bias = bias_table[:, row_index[:, None, :, None], col_index[None, :, None, :]].flatten(3)
    scores = scores + bias.permute(1, 2, 0, 3).unsqueeze(-2)
    attention = F.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(value.dtype)
    return (attention @ gather(value)).flatten(3).permute(0, 3, 1, 2)


def neighbors(size: int, kernel_size: int, device: torch.device) -> Tensor:
    """Indices of the keys of each query along one axis, ``(size, kernel_size)``."""
    first = (torch.arange(size, device=device) - kernel_size // 2).clamp(0, size - kernel_size)
    return first[:, None] + torch.arange(kernel_size, device=device)


def naive_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    window_size: int,
    shift: int,
    dropout: float,
) -> Tensor:
    """See :func:`mmdat.ops.window_attention`: the map is rolled, windows of two sides masked (Swin, section 3.2)."""
    batch, channels, height, width = query.shape
    rows, cols = height // window_size, width // window_size

    def to_windows(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, windows, heads, pixels, channels of a head)."""
        x = x.roll((-shift, -shift), (2, 3))
        x = x.reshape(batch, num_heads, channels // num_heads, rows, window_size, cols, window_size)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(
            batch, rows * cols, num_heads, window_size**2, channels // num_heads
        )

    q, k, v = to_windows(query), to_windows(key), to_windows(value)
    index = relative_position_index(window_size, query.device)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias_table[index].permute(2, 0, 1)
    if shift:
        scores = scores + shifted_window_mask(height, width, window_size, shift, query.device)[:, None].to(scores.dtype)
    attention = F.dropout(scores.softmax(-1), dropout, training=dropout > 0).to(v.dtype)
    out = (attention @ v).reshape(batch, rows, cols, num_heads, window_size, window_size, channels // num_heads)
    out = out.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, channels, height, width)
    return out.roll((shift, shift), (2, 3))


def relative_position_index(window_size: int, device: torch.device) -> Tensor:
    """Row of the bias table for each pair (query, key) of window pixels, ``(pixels, pixels)``."""
    side = torch.arange(window_size, device=device)
    delta = side[:, None] - side[None] + window_size - 1
    index = delta[:, None, :, None] * (2 * window_size - 1) + delta[None, :, None, :]
    return index.reshape(window_size**2, window_size**2)


def shifted_window_mask(height: int, width: int, window_size: int, shift: int, device: torch.device) -> Tensor:
    """-100 between pixels of a window that come from different sides of the map, else 0.

    Returns:
        ``(windows, pixels, pixels)``.
    """

    def region(size: int) -> Tensor:
        """0, 1, 2 along one axis: untouched windows, the last one's own part, what was rolled in."""
        i = torch.arange(size, device=device)
        return (i >= size - window_size).long() + (i >= size - shift).long()

    regions = region(height)[:, None] * 3 + region(width)
    regions = regions.view(height // window_size, window_size, width // window_size, window_size)
    regions = regions.transpose(1, 2).reshape(-1, window_size**2)
    return (regions[:, :, None] != regions[:, None]) * -100.0
