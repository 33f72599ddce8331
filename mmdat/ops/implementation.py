"""What the fast forms of all operators share."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function

#: Ways to compute an operator: the fast form, or the specification it is tested against.
IMPLEMENTATIONS = ('fast', 'naive')


def check_implementation(impl: str) -> None:
    """Raise a ValueError, which names the values there are, for an unknown ``impl``."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got '{impl}'")


def no_autocast(device: torch.device) -> torch.autocast:
    """The fast forms choose their precision themselves."""
    # autocast does not know the meta device.
    return torch.autocast('cpu' if device.type == 'meta' else device.type, enabled=False)


class RefuseSecondDerivative(Function):
    """The identity on gradients, for a backward pass that cannot be differentiated.

    ``apply(name, count, *tensors)`` returns the first ``count`` tensors, the gradients; the others are what
    they were computed from.
    """

    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        ctx.name = name
        return tensors[:count]

    @staticmethod
    def backward(ctx: Any, *_: Optional[Tensor]):
        raise RuntimeError(
            f"the fast form of {ctx.name} has no second derivative: use impl='naive' (attn_impl='naive' "
            'of the backbone)'
        )
