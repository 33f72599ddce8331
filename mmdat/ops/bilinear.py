"""Reading tensors between their entries: what sampling and the bias table have in common."""

import torch.nn.functional as F
from torch import Tensor


def sample(x: Tensor, position: Tensor) -> Tensor:
    """Linear interpolation along one, two or three axes, zero outside.

    Args:
        x: ``(N, C, *size)``, of n axes.
        position: ``(N, *shape, n)``, along each axis with -1 and 1 the first and last entry (``align_corners=True``).
            Of two and more axes, ``shape`` has at most n.

    Returns:
        ``(N, C, *shape)``.
    """
    if position.shape[-1] == 1:  # a signal is a map with one row, whose points lie in it
        x, position = x.unsqueeze(2), F.pad(position, (1, 0))
    # grid_sample takes points in as many axes as x has.
    missing = x.dim() - position.dim()
    for _ in range(missing):
        position = position.unsqueeze(1)
    out = F.grid_sample(x, position.flip(-1), mode='bilinear', align_corners=True)
    return out.flatten(2, 2 + missing) if missing else out
