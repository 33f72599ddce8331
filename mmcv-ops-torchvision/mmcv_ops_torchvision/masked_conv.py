"""A convolution of one image, computed at some of its places only: guided anchoring's predictions."""

import torch.nn.functional as F
from torch import Tensor

from .precision import full


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """What the kernel covers at each place, written into ``col`` (c * kernel_h * kernel_w, places).

    ``im`` is (1, c, h, w); rows and columns of the places are (places,) each. The stride is 1.
    """
    columns = F.unfold(full(im), (kernel_h, kernel_w), padding=(pad_h, pad_w))[0]
    width = im.shape[3] + 2 * pad_w - kernel_w + 1
    col.copy_(columns[:, mask_h_idx * width + mask_w_idx])


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Values ``col`` (channels, places), written into the places of ``im`` (1, channels, height, width)."""
    im[0][:, mask_h_idx, mask_w_idx] = col.to(im)
