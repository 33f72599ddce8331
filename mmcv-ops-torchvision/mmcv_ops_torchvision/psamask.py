"""Point-wise spatial attention (Zhao et al., 2018): masks around each pixel, laid out over the whole map."""

import torch
from torch import Tensor


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write ``output`` (b, h * w, h, w): what ``input`` (b, h_mask * w_mask, h, w) says of each pair of pixels.

    The mask of a pixel is centred on it. The first axis is the other pixel with ``psa_type`` 0, and its own with 1.
    """
    place, inside = _places(input, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    values = input.gather(1, place) * inside
    output.copy_(_turned(values) if psa_type == 1 else values)


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """The gradient for the input, written into ``grad_input``."""
    place, inside = _places(grad_input, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    grad = _turned(grad_output) if psa_type == 1 else grad_output
    grad_input.copy_(torch.zeros_like(grad_input).scatter_add_(1, place, grad * inside))


def _turned(pairs: Tensor) -> Tensor:
    """``(b, h * w, h, w)`` with both pixels exchanged."""
    return pairs.flatten(2).transpose(1, 2).reshape(pairs.shape)


def _places(
    masks: Tensor, height: int, width: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int
) -> tuple[Tensor, Tensor]:
    """Where in its mask each pixel has each other one ``(b, h * w, h, w)``, and whether it has it."""
    rows, cols = [torch.arange(side, device=masks.device) for side in (height, width)]
    row = (rows[:, None] - rows + half_h_mask)[:, None, :, None]  # (other's row, 1, own row, 1)
    col = (cols[:, None] - cols + half_w_mask)[None, :, None, :]
    inside = (row >= 0) & (row < h_mask) & (col >= 0) & (col < w_mask)
    place = (row * w_mask + col).where(inside, row.new_zeros(()))
    return place.flatten(0, 1).expand(len(masks), -1, -1, -1), inside.flatten(0, 1)
