"""The tiled form with its gradient, for eager mode and as an operator for torch.compile and torch.export.

A compiler that unrolled the loops over tiles would work on thousands of nodes, so it gets operators that
it does not look into. In eager mode (and so on the meta device) the loops run themselves.
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
    def forward(ctx: Any, forward, backward, *args) -> tuple[Tensor, Tensor]:
        out, lse = forward(*args)
        ctx.save_for_backward(*args[:7], out, lse)
        ctx.run_backward, ctx.options = backward, args[7:]
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad: Optional[Tensor], _: None) -> tuple[Optional[Tensor], ...]:
        if grad is None:
            return (None,) * (len(ctx.needs_input_grad))
        needs = list(ctx.needs_input_grad[2:7])
        *inputs, out, lse = ctx.saved_tensors
        with torch.no_grad():
            grads = ctx.run_backward(grad, out, lse, *inputs, *ctx.options, needs)
        if torch.is_grad_enabled():
            grads = RefuseSecondDerivative.apply('deformable_attention', len(grads), *grads, grad, *inputs)
        grads = [g if need else None for g, need in zip(grads, needs)]
        return (None, None, *grads, *(None,) * 5)


def tiled_deformable_attention(*args: Any) -> tuple[Tensor, Optional[Tensor]]:
    """``tiled.forward`` with a gradient."""
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in args[:5]):
        return tiled.forward(*args, keep_lse=False)
    return TiledFunction.apply(tiled.forward, tiled.backward, *args)


def _differentiable_operator(*args: Any) -> tuple[Tensor, Tensor]:
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.mmdat.deformable_attention(*args)

    return TiledFunction.apply(forward, torch.ops.mmdat.deformable_attention_backward, *args)


def _backward(*args: Any) -> list[Tensor]:
    # An operator returns tensors: empty ones for gradients that nobody needs.
    return [args[0].new_empty(0) if grad is None else grad for grad in tiled.backward(*args)]


def _meta_forward(query: Tensor, key: Tensor, value: Tensor, table: Tensor, position: Tensor, *args: Any):
    groups = position.shape[1]
    num_heads = args[3]
    shape = num_heads // groups, query.shape[0], groups, *query.shape[2:], 1  # len() would fix the batch
    return torch.empty_like(query), query.new_empty(shape, dtype=tiled.compute_dtype(query, position))


def _meta_backward(grad: Tensor, out: Tensor, lse: Tensor, *args: Any) -> list[Tensor]:
    grads = [torch.empty_like(x) if need else grad.new_empty(0) for x, need in zip(args[:5], args[-1])]
    grads[3] = grads[3].contiguous()  # the gradient of a table, whatever layout the table has
    return grads


_INPUTS = (
    'Tensor query, Tensor key, Tensor value, Tensor table, Tensor position, Tensor query_y, Tensor query_x, '
    'bool even, int num_heads, int scores'
)
_library = torch.library.Library('mmdat', 'FRAGMENT')
_library.define(f'deformable_attention({_INPUTS}) -> (Tensor, Tensor)')
_library.define(
    f'deformable_attention_backward(Tensor grad, Tensor out, Tensor lse, {_INPUTS}, bool[] needs) -> Tensor[]'
)
_library.impl('deformable_attention', tiled.forward, 'CompositeExplicitAutograd')
_library.impl('deformable_attention', _meta_forward, 'Meta')
_library.impl('deformable_attention', _differentiable_operator, 'Autograd')
_library.impl('deformable_attention_backward', _backward, 'CompositeExplicitAutograd')
_library.impl('deformable_attention_backward', _meta_backward, 'Meta')
