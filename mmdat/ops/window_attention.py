"""Attention within shifted or unshifted windows (Swin, section 3.2)."""
import torch
import torch.nn.functional as F
from torch import Tensor


def window_attention(query: Tensor,
                     key: Tensor,
                     value: Tensor,
                     bias_table: Tensor,
                     num_heads: int,
                     window_size: int,
                     shift: int = 0,
                     dropout: float = 0.0) -> Tensor:
    """Multi-head attention within non-overlapping windows.

    Args:
        query, key, value: ``(B, C, H, W)``; ``window_size`` divides ``H`` and ``W``.
        bias_table: ``((2 * window_size - 1)**2, num_heads)``, indexed by query minus key.
        num_heads: Number of heads; divides ``C``.
        window_size: Side of the windows.
        shift: How far the map is rolled up and left before it is cut. Pixels that were not
            neighbours before the roll do not see each other (-100 is added to their scores).
        dropout: Probability of dropping an attention weight.

    Returns:
        ``(B, C, H, W)``.
    """
    batch, channels, height, width = query.shape
    rows, cols = height // window_size, width // window_size
    pixels = window_size**2

    def to_windows(x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, windows, heads, pixels, channels of a head)."""
        if shift:
            x = x.roll((-shift, -shift), (2, 3))
        x = x.reshape(batch, num_heads, channels // num_heads, rows, window_size, cols, window_size)
        return x.permute(0, 3, 5, 1, 4, 6, 2).reshape(batch, rows * cols, num_heads, pixels, -1)

    q, k, v = to_windows(query), to_windows(key), to_windows(value)
    index = relative_position_index(window_size, query.device)
    bias = bias_table[index.flatten()].view(pixels, pixels, num_heads).permute(2, 0, 1)
    if shift:
        bias = bias + shifted_window_mask(height, width, window_size, shift, query.device)[:, None].to(bias.dtype)
    out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype).expand(batch, rows * cols, -1, -1, -1), dropout)
    out = out.reshape(batch, rows, cols, num_heads, window_size, window_size, -1)
    out = out.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, channels, height, width)
    return out.roll((shift, shift), (2, 3)) if shift else out


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
