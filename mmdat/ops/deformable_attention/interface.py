"""The public functions."""

from typing import Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdat.compat import is_compiling

from ..budget import bytes_for_plain_form, scores_at_a_time
from ..checks import check_bias, check_maps, sizes_are_numbers
from ..implementation import Choice, check_implementation, log_choice
from ..position_bias import PositionBias, TableBias
from ..triton.availability import check_available, is_available
from .chunked import chunked_deformable_attention
from .naive import naive_deformable_attention
from .operator import deformable_attention_operator, tiled_deformable_attention


def deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias] = None,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
    plain_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention from a feature map to sampled keys, with a position bias.

    Signals ``(B, C, L)`` and volumes ``(B, C, D, H, W)`` are taken as well as maps.

    Args:
        query: ``(B, C, H, W)``.
        key: ``(B, C, Hk, Wk)``; without keys, the output is zero.
        value: ``(B, C, Hk, Wk)``.
        num_heads: Number of heads; divides ``C``. With ``G`` groups in ``bias``, head ``j`` belongs
            to group ``j // (num_heads / G)``.
        bias: What is added to the scores; see :mod:`mmdat.ops.position_bias`. Its positions may be those of one image
            for the whole batch.
        dropout: Probability of dropping an attention weight.
        impl: ``'naive'``, the specification; ``'tiled'``, whose memory is linear in the number of pixels;
            ``'triton'``, fused kernels for NVIDIA GPUs (docs/gpu.md); or ``'fast'``, whichever suits device and size,
            see :func:`choose_deformable_attention`. The tiled form and the kernels have no second derivative.
        chunk_bytes: How many bytes of scores the tiled form holds at a time; see :mod:`mmdat.ops.budget`.
        plain_bytes: How many bytes the plain form may hold to be chosen; see :mod:`mmdat.ops.budget`.

    Returns:
        Of the shape of ``query``.

    Raises:
        ValueError: If ``impl`` is unknown, a budget is not positive, or shapes do not go together.
        RuntimeError: If the kernels are asked for where they cannot run.
    """
    choice = choose_deformable_attention(query, key, value, num_heads, bias, dropout, impl, chunk_bytes, plain_bytes)
    log_choice('deformable_attention', query.device, choice)
    dtype = query.dtype if bias is None else torch.promote_types(query.dtype, bias.dtype)
    max_scores = scores_at_a_time(query.device, dtype, chunk_bytes)
    return IMPLEMENTATIONS[choice.implementation](query, key, value, num_heads, bias, dropout, max_scores)


def choose_deformable_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias] = None,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
    plain_bytes: Optional[int] = None,
) -> Choice:
    """Which of :data:`IMPLEMENTATIONS` runs with these arguments, those of :func:`deformable_attention`, and why."""
    check_implementation(impl)
    if sizes_are_numbers():
        check_maps(query, key, value, num_heads, dropout, allowed=(2, 1, 3))
        check_bias(query, key, num_heads, bias)
    if impl == 'naive':
        return Choice('naive', 'it was asked for')
    if torch.jit.is_tracing():
        return Choice('naive', 'torch.jit.trace and the counters and exporters built on it know plain operations only')
    if sizes_are_numbers() and not (query.numel() and key.numel()):
        return Choice('naive', 'there are no queries or no keys')
    if bias is None and not dropout:
        return Choice('sdpa', 'without a position bias, PyTorch has a fused form')
    if query.dim() != 4:
        return Choice('chunked', 'tiles are for maps')
    if not isinstance(bias, TableBias) or dropout or bias.query_y.requires_grad or bias.query_x.requires_grad:
        return Choice('chunked', 'tiles are for a table as bias, without dropout')
    if impl == 'triton':
        if query.is_meta:
            return Choice('tiled', 'tensors without values run no kernel')
        if not bias.evenly_spaced:
            return Choice('tiled', 'the kernels are for evenly spaced queries')
        check_available(query, num_heads)
        return Choice('triton', 'it was asked for')
    # Only tiles have a deterministic algorithm for the table's gradient on a GPU.
    if impl == 'fast' and not torch.are_deterministic_algorithms_enabled():
        if bias.evenly_spaced and is_available(query, num_heads):
            return Choice('triton', 'fused kernels hold no scores')
        if sizes_are_numbers():
            held = held_by_plain_form(query, key, value, num_heads, bias)
            if held <= bytes_for_plain_form(query.device, plain_bytes):
                return Choice('naive', 'all scores fit the bound of memory, so nothing is computed twice')
    return Choice('tiled', 'its memory is linear in the number of pixels')


def held_by_plain_form(query: Tensor, key: Tensor, value: Tensor, num_heads: int, bias: TableBias) -> int:
    """Bytes that the plain form keeps for its backward pass, or about half of what it holds for a moment."""
    pairs = query.shape[0] * query.shape[2] * query.shape[3] * key.shape[2] * key.shape[3]
    dtype = torch.promote_types(query.dtype, bias.dtype)
    # Of each group, displacements along both axes; of each head, weights, and those in the precision of the values.
    of_group = 2 * bias.position.element_size()
    of_head = dtype.itemsize + (value.element_size() if value.dtype != dtype else 0)
    return pairs * (bias.position.shape[1] * of_group + num_heads * of_head)


def _naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: Optional[PositionBias],
    dropout: float,
    max_scores: int,
) -> Tensor:
    return naive_deformable_attention(query, key, value, num_heads, bias, dropout)


def _sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: None,
    dropout: float,
    max_scores: int,
) -> Tensor:
    q, k, v = [x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3) for x in (query, key, value)]
    # PyTorch takes a form that holds all scores where the channels do not follow each other in memory.
    q, k, v = [x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v)]
    return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(query.shape)


def _tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: TableBias,
    dropout: float,
    max_scores: int,
) -> Tensor:
    attend = deformable_attention_operator if is_compiling() else tiled_deformable_attention
    position = bias.position
    if position.shape[0] != query.shape[0]:  # one set for the whole batch
        position = position.expand(query.shape[0], -1, -1, -1, -1)
    axes = bias.query_y, bias.query_x, bias.evenly_spaced
    return attend(query, key, value, bias.table, position, *axes, num_heads, max_scores)


def _triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    bias: TableBias,
    dropout: float,
    max_scores: int,
) -> Tensor:
    # Imported here, for it needs Triton.
    from ..triton.operators import deformable_attention, deformable_attention_operator

    attend = deformable_attention_operator if is_compiling() else deformable_attention
    position = bias.position.expand(query.shape[0], -1, -1, -1, -1)
    return attend(query, key, value, bias.table, position, bias.query_y, bias.query_x, num_heads)


#: The implementations, by name; all take ``(query, key, value, num_heads, bias, dropout, max_scores)``.
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    'naive': _naive,
    'sdpa': _sdpa,
    'chunked': chunked_deformable_attention,
    'tiled': _tiled,
    'triton': _triton,
}
