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

import torch
from torch import Tensor

CONVENTIONS = ('dat', 'dat++')


def reference_points(height: int, width: int, convention: str, like: Tensor) -> Tensor:
    """The sampling points before they move, ``(height, width, 2)``, in the dtype and on the device of ``like``."""
    axes = [indices(n, like) for n in (height, width)]
    axes = [(index + 0.5) / divisor(index, convention) * 2 - 1 for index in axes]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)


def query_axis(size: int, convention: str, like: Tensor) -> Tensor:
    """Positions of the queries along one axis, ``(size,)``: cell centres in DAT, border to border in DAT++."""
    index = indices(size, like)
    if convention == 'dat':
        return (index + 0.5) / divisor(index, convention) * 2 - 1
    return (index * 2 - index[-1:]) / divisor(index, convention)


def indices(size: int, like: Tensor) -> Tensor:
    """0, 1, … ``size - 1`` in the dtype and on the device of ``like``."""
    return torch.arange(size, dtype=like.dtype, device=like.device)


def divisor(index: Tensor, convention: str) -> Tensor:
    """What the convention divides an axis by, ``(1,)``, from the axis' :func:`indices`."""
    # From the indices, for functions such as max would fix the size in a traced or exported program.
    return index[-1:] + 1 if convention == 'dat' else index[-1:].clamp(min=1)
