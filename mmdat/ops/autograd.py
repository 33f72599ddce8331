"""How the fast forms meet autograd: two passes written by hand become one differentiable function.

In eager mode the functions below serve alone, with every version of PyTorch. For ``torch.compile`` and ``torch.export``
the same two passes are registered as operators (``operator.py`` of each operator), which a compiler does not look into.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, NoReturn, Optional

import torch
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)  # no tuple, which torch.vmap would take apart
class Passes:
    """A function written as a forward and a backward pass.

    Attributes:
        name: What errors call it.
        forward: From its arguments to ``(out, *kept)``, where the backward pass needs what is kept.
        backward: ``(needs, grad, out, *kept, *arguments)`` to a gradient or None for each argument (those at the end
            that never have one may be left out); ``needs`` says for each argument whether a gradient is wanted.
    """

    name: str
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., list[Optional[Tensor]]]

    def __call__(self, *args: Any) -> Tensor:
        """The output; differentiable once, in reverse mode."""
        return _Forward.apply(self, *args)[0]

    def refuse(self, what: str) -> NoReturn:
        """Say that the function has no derivative of a kind, and what has it."""
        raise RuntimeError(
            f"the fast form of {self.name} has no {what}: use impl='naive' (attn_impl='naive' of the backbone)"
        )


class _Pass(Function):
    """A pass that torch.vmap calls once for each sample, and that has no forward-mode derivative.

    The first argument is the :class:`Passes` that it belongs to.
    """

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        samples = [
            cls.apply(*(x.select(dim, i) if isinstance(dim, int) else x for x, dim in zip(args, in_dims)))
            for i in range(info.batch_size)
        ]
        outs = tuple(torch.stack(values) for values in zip(*samples))
        return outs, (0,) * len(outs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        ctx.passes.refuse('forward-mode derivative')


class _Forward(_Pass):
    @staticmethod
    def forward(passes: Passes, *args: Any) -> tuple[Tensor, ...]:
        return passes.forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, ...]) -> None:
        ctx.passes, *args = inputs
        save(ctx, args, outputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Optional[Tensor], ...]:
        _, *needs = ctx.needs_input_grad
        return None, *spread(needs, _Backward.apply(ctx.passes, needs, grad, *saved(ctx)))


class _Backward(_Pass):
    """The gradients that are needed; a function of its own, so that differentiating them is refused in a sentence.

    (``once_differentiable`` would not do: it lets derivatives pass whose graph does not come from the gradient, as with
    the gradient of a sum.)
    """

    @staticmethod
    def forward(passes: Passes, needs: list[bool], *args: Any) -> tuple[Tensor, ...]:
        grads = passes.backward(needs, *args)
        return tuple(grad for grad, need in zip(grads, needs) if need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, ...]) -> None:
        ctx.passes, *_ = inputs

    @staticmethod
    def backward(ctx: Any, *_: Any) -> NoReturn:
        ctx.passes.refuse('second derivative')


def save(ctx: Any, args: Sequence[Any], outputs: tuple[Tensor, ...]) -> None:
    """Keep what the backward pass takes; all outputs but the first are its alone."""
    ctx.mark_non_differentiable(*outputs[1:])
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in (*outputs, *args)]
    ctx.save_for_backward(*(x for x in (*outputs, *args) if isinstance(x, Tensor)))


def saved(ctx: Any) -> list[Any]:
    """The outputs and the arguments."""
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


def spread(needs: Sequence[bool], grads: Sequence[Tensor]) -> tuple[Optional[Tensor], ...]:
    """The gradients that are needed at the places of their arguments, None at the others."""
    rest = iter(grads)
    return tuple(next(rest) if need else None for need in needs)


def above_operators(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that uses autograd, wherever one is: within an operator there is none, but in another thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()
