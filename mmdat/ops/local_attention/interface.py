"""The public functions."""

from typing import Callable, Optional

import torch
from torch import Tensor

from mmdat.compat import is_compiling

from ..budget import scores_at_a_time
from ..checks import check_maps, check_neighborhood, check_same_map, check_windows, sizes_are_numbers
from ..implementation import Choice, check_implementation, log_choice
from ..triton.availability import check_available, is_available
from .naive import naive_neighborhood_attention, naive_window_attention
from .operator import local_attention_operator, tiled_neighborhood_attention, tiled_window_attention


def neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    kernel_size: int,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention of each pixel to the ``kernel_size**2`` pixels around it.

    At the border the window is shifted inwards, so that each pixel has equally many keys.

    Args:
        query, key, value: ``(B, C, H, W)``, with ``H`` and ``W`` at least ``kernel_size``.
        bias_table: ``(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)``, indexed by
            key minus query.
        num_heads: Number of heads; divides ``C``.
        kernel_size: Odd side of the window.
        dropout: Probability of dropping an attention weight; only the naive form can, and takes over then.
        impl: ``'naive'``, the specification; ``'tiled'``, which holds a part of the scores at a time; ``'triton'``,
            fused kernels for NVIDIA GPUs (docs/gpu.md); or ``'fast'``, whichever suits the device, see
            :func:`choose_neighborhood_attention`. The tiled form and the kernels have no second derivative.
        chunk_bytes: How many bytes of scores the tiled form holds at a time; see :mod:`mmdat.ops.budget`.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If ``impl`` is unknown, ``chunk_bytes`` is not positive, or shapes do not go together.
        RuntimeError: If the kernels are asked for where they cannot run.
    """
    choice = choose_neighborhood_attention(query, key, value, bias_table, num_heads, kernel_size, dropout, impl)
    log_choice('neighborhood_attention', query.device, choice)
    max_scores = scores_at_a_time(query.device, torch.promote_types(query.dtype, bias_table.dtype), chunk_bytes)
    pattern = 'neighborhood', kernel_size, 0
    attend = IMPLEMENTATIONS[choice.implementation]
    return attend(query, key, value, bias_table, num_heads, *pattern, dropout, max_scores)


def choose_neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    kernel_size: int,
    dropout: float = 0.0,
    impl: str = 'fast',
) -> Choice:
    """Which of :data:`IMPLEMENTATIONS` runs with these arguments, and why."""
    check_implementation(impl)
    if sizes_are_numbers():
        check_maps(query, key, value, num_heads, dropout)
        check_same_map(query, key)
        check_neighborhood(query, bias_table, num_heads, kernel_size)
    return _choose(query, num_heads, kernel_size, dropout, impl) or Choice(
        'tiled', 'it reads each key once for many queries'
    )


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    window_size: int,
    shift: int = 0,
    dropout: float = 0.0,
    impl: str = 'fast',
    chunk_bytes: Optional[int] = None,
) -> Tensor:
    """Multi-head attention within non-overlapping windows.

    Args:
        query, key, value: ``(B, C, H, W)``; ``window_size`` divides ``H`` and ``W``.
        bias_table: ``((2 * window_size - 1)**2, num_heads)``, indexed by query minus key.
        num_heads: Number of heads; divides ``C``.
        window_size: Side of the windows.
        shift: How far right and down the windows are shifted; those that the border of the map cuts are smaller.
        dropout: Probability of dropping an attention weight; only the naive form can, and takes over then.
        impl: ``'naive'``, the specification; ``'tiled'``, which holds a part of the scores at a time; ``'triton'``,
            fused kernels for NVIDIA GPUs (docs/gpu.md); or ``'fast'``, whichever suits the device, see
            :func:`choose_window_attention`. The tiled form and the kernels have no second derivative.
        chunk_bytes: How many bytes of scores the tiled form holds at a time; see :mod:`mmdat.ops.budget`.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: If ``impl`` is unknown, ``chunk_bytes`` is not positive, or shapes do not go together.
        RuntimeError: If the kernels are asked for where they cannot run.
    """
    choice = choose_window_attention(query, key, value, bias_table, num_heads, window_size, shift, dropout, impl)
    log_choice('window_attention', query.device, choice)
    max_scores = scores_at_a_time(query.device, torch.promote_types(query.dtype, bias_table.dtype), chunk_bytes)
    pattern = 'window', window_size, shift
    attend = IMPLEMENTATIONS[choice.implementation]
    return attend(query, key, value, bias_table, num_heads, *pattern, dropout, max_scores)


def choose_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    window_size: int,
    shift: int = 0,
    dropout: float = 0.0,
    impl: str = 'fast',
) -> Choice:
    """Which of :data:`IMPLEMENTATIONS` runs with these arguments, and why."""
    check_implementation(impl)
    if sizes_are_numbers():
        check_maps(query, key, value, num_heads, dropout)
        check_same_map(query, key)
        check_windows(query, bias_table, num_heads, window_size, shift)
    choice = _choose(query, num_heads, window_size, dropout, impl)
    if choice is None and impl == 'fast' and query.device.type != 'cpu':
        # Its scores are few, and by count it moves fewer bytes in fewer kernels (docs/gpu.md).
        return Choice('naive', 'windows have few scores, which are all held')
    return choice or Choice('tiled', 'it holds a part of the windows at a time')


def _choose(query: Tensor, num_heads: int, size: int, dropout: float, impl: str) -> Optional[Choice]:
    """The plain form where there is no choice, or the kernels."""
    if impl == 'naive':
        return Choice('naive', 'it was asked for')
    if torch.jit.is_tracing():
        return Choice('naive', 'torch.jit.trace and the counters and exporters built on it know plain operations only')
    if dropout:
        return Choice('naive', 'only this form has dropout')
    if sizes_are_numbers() and not query.numel():
        return Choice('naive', 'there are no pixels')
    if impl == 'triton' and query.is_meta:
        return Choice('tiled', 'tensors without values run no kernel')
    if impl == 'triton':
        check_available(query, num_heads, size)
        return Choice('triton', 'it was asked for')
    if impl == 'fast' and is_available(query, num_heads, size):
        return Choice('triton', 'fused kernels hold no scores')
    return None


def _naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    dropout: float,
    max_scores: int,
) -> Tensor:
    if pattern == 'window':
        return naive_window_attention(query, key, value, bias_table, num_heads, size, shift, dropout)
    return naive_neighborhood_attention(query, key, value, bias_table, num_heads, size, dropout)


def _tiled(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    dropout: float,
    max_scores: int,
) -> Tensor:
    attend = tiled_window_attention if pattern == 'window' else tiled_neighborhood_attention
    if is_compiling():
        attend = local_attention_operator
    table = _by_key_minus_query(bias_table, pattern, size)
    return attend(query, key, value, table, num_heads, pattern, size, shift, max_scores)


def _triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias_table: Tensor,
    num_heads: int,
    pattern: str,
    size: int,
    shift: int,
    dropout: float,
    max_scores: int,
) -> Tensor:
    # Imported here, for it needs Triton.
    from ..triton.operators import local_attention, local_attention_operator

    attend = local_attention_operator if is_compiling() else local_attention
    table = _by_key_minus_query(bias_table, pattern, size)
    return attend(query, key, value, table, num_heads, pattern, size, shift)


def _by_key_minus_query(bias_table: Tensor, pattern: str, size: int) -> Tensor:
    """A table as ``(num_heads, 2 * size - 1, 2 * size - 1)``, as that of neighbourhoods is; that of windows is not."""
    if pattern == 'neighborhood':
        return bias_table
    side = 2 * size - 1
    return bias_table.t().unflatten(1, (side, side)).flip(1, 2)


#: The implementations, by name; all take ``(query, key, value, bias_table, num_heads, pattern, size, shift, dropout,
#: max_scores)``, where ``pattern`` is ``'neighborhood'`` or ``'window'`` and ``shift`` that of windows.
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {'naive': _naive, 'tiled': _tiled, 'triton': _triton}
