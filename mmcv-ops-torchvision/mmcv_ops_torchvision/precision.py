"""Half precision, and gradients of functions that are written with autograd's operations."""

from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor


def full(tensor: Tensor) -> Tensor:
    """The tensor, in float32 where it is of half precision.

    None of the operations that forward passes use on it is one that autocast would compute in half precision.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ``function(*inputs)`` for each input, all in full precision.

    mmcv calls its operators from ``autograd.Function``, forward and backward apart, so that the backward pass computes
    the forward pass again.
    """
    # A backward pass that is run under autocast would be affected by it, unlike torchvision's forward passes.
    with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
        leaves = [full(tensor.detach()).detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(*leaves), leaves, full(grad_output))
