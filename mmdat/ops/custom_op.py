"""The fast forms as operators of ``torch.ops.mmdat``, for ``torch.compile`` and ``torch.export``.

A compiler that unrolled the loops over tiles would work on thousands of nodes, so it gets operators that it does not
look into. In eager mode (and so on the meta device) the loops run themselves.
"""

from collections.abc import Sequence
from typing import Any, Callable, Union

import torch
from torch import Tensor

from .autograd import Passes, save, saved, spread


def register(
    passes: Passes, inputs: str, outputs: Sequence[str], fake_forward: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., Tensor]:
    """Register ``mmdat::NAME`` and ``mmdat::NAME_backward``.

    Args:
        passes: What they compute; its name is theirs.
        inputs: The arguments of the forward pass in the language of PyTorch's schemas.
        outputs: Names of what the forward pass returns.
        fake_forward: What it returns, without values.

    Returns:
        A function from the arguments of the forward pass to its first output. With PyTorch before 2.4, which cannot
        register operators in this way, the passes themselves.
    """
    if not hasattr(torch.library, 'custom_op'):
        return passes
    several = len(outputs) > 1
    output_names = ', '.join(f'Tensor {name}' for name in outputs)
    output_types = ', '.join('Tensor' for _ in outputs)

    # As an operator returns them: one tensor is no tuple.
    def unpack(outs: tuple[Tensor, ...]) -> Union[Tensor, tuple[Tensor, ...]]:
        return outs if several else outs[0]

    def pack(outs: Union[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return tuple(outs) if several else (outs,)

    def run_forward(*args: Any) -> Union[Tensor, tuple[Tensor, ...]]:
        return unpack(passes.forward(*args))

    def run_backward(needs: Sequence[bool], *args: Any) -> list[Tensor]:
        return [grad for grad, need in zip(passes.backward(needs, *args), needs) if need]

    forward = torch.library.custom_op(
        f'mmdat::{passes.name}', run_forward, mutates_args=(), schema=f'({inputs}) -> ({output_types})'
    )
    backward = torch.library.custom_op(
        f'mmdat::{passes.name}_backward',
        run_backward,
        mutates_args=(),
        schema=f'(bool[] needs, Tensor grad, {output_names}, {inputs}) -> Tensor[]',
    )

    def keep(ctx: Any, inputs: tuple, output: Union[Tensor, tuple[Tensor, ...]]) -> None:
        save(ctx, inputs, pack(output))

    def differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        needs = list(ctx.needs_input_grad)
        return spread(needs, backward(needs, grad, *saved(ctx)))

    def fake_backward(needs: Sequence[bool], grad: Tensor, *args: Any) -> list[Tensor]:
        return [torch.empty_like(x) for x, need in zip(args[len(outputs) :], needs) if need]

    forward.register_fake(lambda *args: unpack(fake_forward(*args)))
    forward.register_autograd(differentiate, setup_context=keep)
    backward.register_fake(fake_backward)
    backward.register_autograd(lambda ctx, *grads: passes.refuse('second derivative'))
    return lambda *args: pack(forward(*args))[0]
