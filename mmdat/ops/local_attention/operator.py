"""The tiled form with its gradient, for eager mode and as an operator for torch.compile and torch.export.

As for deformable attention, a compiler gets operators that it does not look into.
"""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd import Function

from ..implementation import RefuseSecondDerivative
from . import tiled


class TiledFunction(Function):
    """The autograd rule; the first two arguments are the forward and backward functions."""

    @staticmethod
    def forward(ctx: Any, forward, backward, *args) -> Tensor:
        out = forward(*args)
        ctx.save_for_backward(out, *args[:4])
        ctx.run_backward, ctx.options = backward, args[4:]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        needs = list(ctx.needs_input_grad[2:6])
        with torch.no_grad():
            grads = ctx.run_backward(grad, *ctx.saved_tensors, *ctx.options, needs)
        if torch.is_grad_enabled():
            grads = RefuseSecondDerivative.apply(
                f'{ctx.options[1]} attention', len(grads), *grads, grad, *ctx.saved_tensors[1:]
            )
        grads = [g if need else None for g, need in zip(grads, needs)]
        return (None, None, *grads, *(None,) * 5)


def tiled_local_attention(*args: Any) -> Tensor:
    """``tiled.forward`` with a gradient."""
    return TiledFunction.apply(tiled.forward, tiled.backward, *args)


def _differentiable_operator(*args: Any) -> Tensor:

    def forward(*args: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mmdat.local_attention(*args)

    return TiledFunction.apply(forward, torch.ops.mmdat.local_attention_backward, *args)


def _backward(*args: Any) -> list[Tensor]:
    # An operator returns tensors: empty ones for gradients that nobody needs.
    return [args[0].new_empty(0) if grad is None else grad for grad in tiled.backward(*args)]


def _meta_forward(query: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(query)


def _meta_backward(grad: Tensor, out: Tensor, *args: Any) -> list[Tensor]:
    grads = [torch.empty_like(x) if need else grad.new_empty(0) for x, need in zip(args[:4], args[-1])]
    grads[3] = grads[3].contiguous()  # the gradient of a table, whatever layout the table has
    return grads


_INPUTS = (
    'Tensor query, Tensor key, Tensor value, Tensor bias_table, int num_heads, str pattern, int size, '
    'int shift, int scores'
)
_library = torch.library.Library('mmdat', 'FRAGMENT')
_library.define(f'local_attention({_INPUTS}) -> Tensor')
_library.define(f'local_attention_backward(Tensor grad, Tensor out, {_INPUTS}, bool[] needs) -> Tensor[]')
_library.impl('local_attention', tiled.forward, 'CompositeExplicitAutograd')
_library.impl('local_attention', _meta_forward, 'Meta')
_library.impl('local_attention', _differentiable_operator, 'Autograd')
_library.impl('local_attention_backward', _backward, 'CompositeExplicitAutograd')
_library.impl('local_attention_backward', _meta_backward, 'Meta')
