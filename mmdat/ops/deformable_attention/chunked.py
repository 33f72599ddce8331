"""Deformable attention with any bias, some queries at a time, computed again for the backward pass."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

from mmdat.compat import is_compiling

from ..autograd import Passes
from ..implementation import no_autocast
from ..position_bias import PositionBias, parts
from .naive import attend


def chunked_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias],
    dropout: float,
    max_scores: int,
) -> Tensor:
    """See :func:`mmdat.ops.deformable_attention`; ``max_scores`` are held at a time, at least those of one query."""
    if is_compiling():
        return _chunked_by_checkpoints(query, key, value, num_heads, bias, dropout, max_scores)
    return _PASSES(query, key, value, num_heads, dropout, max_scores, type(bias), *parts(bias))


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    dropout: float,
    max_scores: int,
    bias_type: type,
    *bias_parts: Any,
) -> tuple[Tensor, ...]:
    """The output and, with dropout, the states of the random number generators that drew its masks."""
    states = _random_states(query) if dropout else ()
    bias = bias_type(*bias_parts) if bias_parts else None
    pixels = query.flatten(2)
    # Written into one tensor made before: small outputs, kept until all of them are joined, would lie between the large
    # tensors of the steps in the memory of the process and keep all of it from being used again.
    out = query.new_empty(query.shape[0], pixels.shape[2], query.shape[1])
    with no_autocast(query.device):
        for chunk in _chunks(query, key, num_heads, bias, max_scores):
            part = None if bias is None else bias.evaluate(chunk)
            out[:, chunk] = attend(pixels[..., chunk], key, value, num_heads, part, dropout).transpose(1, 2)
    return _as_map(out, query), *states


def backward(needs: list[bool], grad: Tensor, out: Tensor, *args: Any) -> list[Optional[Tensor]]:
    """Gradients of the arguments of :func:`forward` that need one: those of each chunk by autograd, added up."""
    num_states = len(args) - len(needs)
    states, args = args[:num_states], args[num_states:]
    args = [x.detach() if isinstance(x, Tensor) else x for x in args]
    query, pixels, grad = args[0], args[0].flatten(2), grad.flatten(2)
    grads = [torch.zeros_like(x) if need else None for x, need in zip(args, needs)]
    if needs[0]:
        grads[0] = query.new_empty(query.shape[0], pixels.shape[2], query.shape[1])
    for x, need in zip(args[1:], needs[1:]):
        if need:
            x.requires_grad_()
    wanted = [i for i, need in enumerate(needs) if need]
    _, key, value, num_heads, dropout, max_scores, bias_type, *bias_parts = args
    bias = bias_type(*bias_parts) if bias_parts else None
    with torch.enable_grad(), no_autocast(query.device), _drawing_again(query, states):
        for chunk in _chunks(query, key, num_heads, bias, max_scores):
            some = pixels[..., chunk].requires_grad_(needs[0])
            part = None if bias is None else bias.evaluate(chunk)
            result = attend(some, key, value, num_heads, part, dropout)
            leaves = [some if i == 0 else args[i] for i in wanted]
            for i, part in zip(wanted, torch.autograd.grad(result, leaves, grad[..., chunk], allow_unused=True)):
                if i == 0:
                    grads[0][:, chunk] = part.transpose(1, 2)
                elif part is not None:
                    grads[i] += part
    if needs[0]:
        grads[0] = _as_map(grads[0], query)
    return grads


def _chunks(
    query: Tensor, key: Tensor, num_heads: int, bias: Optional[PositionBias], max_scores: int
) -> Iterator[slice]:
    """Ranges of the flattened map, each with about ``max_scores`` numbers of its largest tensor."""
    numbers = num_heads if bias is None else max(num_heads, bias.numbers_per_pair)
    pixels = math.prod(query.shape[2:])
    size = max(max_scores // (query.shape[0] * numbers * math.prod(key.shape[2:])), 1)
    for start in range(0, pixels, size):
        yield slice(start, min(start + size, pixels))


def _as_map(pixels: Tensor, like: Tensor) -> Tensor:
    """``(B, H * W, C)`` as a map ``(B, C, H, W)``, or what has other axes."""
    return pixels.transpose(1, 2).unflatten(2, tuple(like.shape[2:]))


def _random_states(query: Tensor) -> tuple[Tensor, ...]:
    """Of the CPU and, if the map is elsewhere, of its device."""
    return torch.get_rng_state(), *(get_device_states(query)[1] if query.is_cuda else ())


@contextmanager
def _drawing_again(query: Tensor, states: tuple[Tensor, ...]) -> Iterator[None]:
    """Draw the random numbers that followed the states, and leave the generators as they were."""
    devices = [query.get_device()] if query.is_cuda else []
    with torch.random.fork_rng(devices, enabled=bool(states)):
        if states:
            torch.set_rng_state(states[0])
            set_device_states(devices, states[1:])
        yield


def _chunked_by_checkpoints(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias],
    dropout: float,
    max_scores: int,
) -> Tensor:
    """The same in a form that torch.compile and torch.export look into; they plan the memory themselves."""
    pixels = query.flatten(2)

    def attend_chunk(pixels: Tensor, key: Tensor, value: Tensor, chunk: slice) -> Tensor:
        part = None if bias is None else bias.evaluate(chunk)
        return attend(pixels[..., chunk], key, value, num_heads, part, dropout)

    chunks = []
    for chunk in _chunks(query, key, num_heads, bias, max_scores):
        args = pixels, key, value, chunk
        if torch.is_grad_enabled():
            chunks.append(checkpoint(attend_chunk, *args, use_reentrant=False, preserve_rng_state=dropout > 0))
        else:
            chunks.append(attend_chunk(*args))
    return torch.cat(chunks, 2).view(query.shape)


_PASSES = Passes('deformable_attention', forward, backward)
