"""Whether tensors hold only finite numbers, where asking costs nothing."""

import torch
from torch import Tensor


def known_to_hold_nonfinite(*tensors: Tensor) -> bool:
    """Whether one of the tensors holds NaN or infinity.

    The dense products of tiles would spread such numbers over a tile, for zero times infinity is NaN; so the fast forms
    leave tensors that hold them to the plain ones. Asking means to wait for a GPU, so only tensors in the memory of the
    CPU are looked into; elsewhere, and for tensors without values, the answer is no.
    """
    if any(x.device.type != 'cpu' or type(x) not in (Tensor, torch.nn.Parameter) for x in tensors):
        return False
    # A sum is one quick pass. (It may overflow, too; the plain form is right for large numbers as well.)
    with torch.no_grad():
        return not all(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite() for x in tensors)
