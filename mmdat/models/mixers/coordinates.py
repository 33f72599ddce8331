"""Where the sampling points and the queries of deformable attention lie, in the two conventions of released weights.

Positions are normalised: -1 and 1 are the centres of the first and last pixel of the map that is sampled.

========  ==================================  ============================
          sampling point i of n, before it    query i of n
          moves
========  ==================================  ============================
dat       ``(i + 0.5) / n * 2 - 1``           ``(i + 0.5) / n * 2 - 1``
dat++     ``(i + 0.5) / (n - 1) * 2 - 1``     ``i / (n - 1) * 2 - 1``
========  ==================================  ============================

In ``'dat++'`` the last sampling point lies beyond 1. Where n is 1, its formulas would divide by zero; the divisor is
then 1, so that a single query lies in the centre.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdat.compat import at_least

CONVENTIONS = ('dat', 'dat++')


def reference_points(size: Sequence[int], convention: str, like: Tensor) -> Tensor:
    """The sampling points before they move, ``(*size, axes)``, in the dtype and on the device of ``like``."""
    axes = [(indices(side, like) + 0.5) / divisor(side, convention) * 2 - 1 for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)


def query_axis(size: int, convention: str, like: Tensor) -> Tensor:
    """Positions of the queries along one axis, ``(size,)``: cell centres in DAT, border to border in DAT++."""
    if convention == 'dat':
        return (indices(size, like) + 0.5) / size * 2 - 1
    return (indices(size, like) * 2 - (size - 1)) / divisor(size, convention)


def indices(size: int, like: Tensor) -> Tensor:
    """0, 1, … ``size - 1`` in the dtype and on the device of ``like``."""
    return torch.arange(size, dtype=like.dtype, device=like.device)


def divisor(size: int, convention: str) -> int:
    """What the convention divides an axis by."""
    return size if convention == 'dat' else at_least(size - 1, 1)
