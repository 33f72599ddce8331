"""Whether the arguments of an operator go together. Each function raises a ValueError of one sentence, or returns."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Optional

import torch
from torch import Tensor

from mmdat.compat import is_compiling

from .position_bias import FixedBias, LogBias, PositionBias, TableBias, query_axes

#: Shapes of what has one, two or three axes beside batch and channels, and of positions on it.
_KINDS = {1: 'a signal (B, C, L)', 2: 'a map (B, C, H, W)', 3: 'a volume (B, C, D, H, W)'}
_POSITIONS = {1: '(B, G, Lk, 1)', 2: '(B, G, Hk, Wk, 2)', 3: '(B, G, Dk, Hk, Wk, 3)'}


def sizes_are_numbers() -> bool:
    """Whether sizes can be looked at: a program that is traced or exported for any size would be bound to them."""
    return not (torch.jit.is_tracing() or is_compiling())


def check_axes(name: str, x: Tensor, allowed: Sequence[int] = (2, 1, 3)) -> None:
    """A tensor has batch, channels, and one of some numbers of axes."""
    if x.dim() - 2 not in allowed:
        kinds = ' or '.join(_KINDS[axes] for axes in allowed)
        raise ValueError(f'{name} must be {kinds}, got shape {tuple(x.shape)}')


def check_channels(name: str, x: Tensor, channels: int, axes: int = 2) -> None:
    """A tensor is what a layer of some channels takes: with batch, these channels, and some number of axes."""
    check_axes(name, x, (axes,))
    if x.shape[1] != channels:
        raise ValueError(f'{name} must have {channels} channels, got shape {tuple(x.shape)}')


def check_devices(query: Tensor, **others: Optional[Tensor]) -> None:
    """All tensors are in one memory; copies between some devices would leave the result as it was, and say nothing."""
    for name, x in others.items():
        if x is not None and x.device != query.device:
            raise ValueError(f'{name} is on {x.device}, but must be where the maps are, on {query.device}')


def check_maps(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float, allowed: Sequence[int] = (2,)
) -> None:
    """Queries, keys and values are maps, or of another ``allowed`` number of axes, that one attention can take."""
    for name, x in (('query', query), ('key', key), ('value', value)):
        check_axes(name, x, allowed if x is query else (query.dim() - 2,))
        if not x.is_floating_point():
            raise ValueError(f'{name} must hold floating-point numbers, got {x.dtype}')
    check_devices(query, key=key, value=value)
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f'query, key and value must have one dtype, got {query.dtype}, {key.dtype}, {value.dtype}')
    if key.shape != value.shape:
        raise ValueError(f'key and value must have the same shape, got {tuple(key.shape)} and {tuple(value.shape)}')
    if query.shape[:2] != key.shape[:2]:
        raise ValueError(
            f'query and key must have the same batch and channels, got {tuple(query.shape)} and {tuple(key.shape)}'
        )
    if num_heads < 1 or query.shape[1] % num_heads or not query.shape[1]:
        raise ValueError(f'num_heads={num_heads} does not divide the {query.shape[1]} channels of query')
    if not 0 <= dropout <= 1:
        raise ValueError(f'dropout must be from 0 to 1, got {dropout}')


def check_bias(query: Tensor, key: Tensor, num_heads: int, bias: Optional[PositionBias]) -> None:
    """The bias has the heads, the queries and the keys of the attention."""
    if bias is None:
        return
    if isinstance(bias, (TableBias, LogBias, FixedBias)):
        tensors = {field.name: getattr(bias, field.name) for field in fields(bias)}
        check_devices(query, **{name: x for name, x in tensors.items() if isinstance(x, Tensor)})
    if isinstance(bias, FixedBias):
        if bias.table.dim() != 3 or bias.table.shape[0] != num_heads or not bias.table.numel():
            raise ValueError(
                f'the table of FixedBias must be ({num_heads}, queries, keys) for num_heads={num_heads}, '
                f'got {tuple(bias.table.shape)}'
            )
        if tuple(bias.query_size) != tuple(query.shape[2:]) or bias.num_keys != math.prod(key.shape[2:]):
            raise ValueError(
                f'FixedBias is for {tuple(bias.query_size)} queries and {bias.num_keys} keys, '
                f'but the maps have {tuple(query.shape[2:])} and {tuple(key.shape[2:])}'
            )
        return
    if not isinstance(bias, (TableBias, LogBias)):
        raise ValueError(f'bias must be TableBias, LogBias, FixedBias or None, got {type(bias).__name__}')
    check_position(bias.position, query)
    axes = query_axes(bias)
    if len(axes) != query.dim() - 2:
        raise ValueError(f'{type(bias).__name__} has {", ".join(axes)}, but query is of shape {tuple(query.shape)}')
    groups = bias.position.shape[1]
    if num_heads % groups:
        raise ValueError(f'the {groups} groups of positions do not divide num_heads={num_heads}')
    if bias.position.shape[2:-1] != key.shape[2:]:
        raise ValueError(
            f'there must be a position for each key: positions are {tuple(bias.position.shape[2:-1])}, '
            f'keys {tuple(key.shape[2:])}'
        )
    for (name, axis), size in zip(axes.items(), query.shape[2:]):
        if axis.shape != (size,):
            raise ValueError(f'{name} must be ({size},) for queries {tuple(query.shape[2:])}, got {tuple(axis.shape)}')
    if isinstance(bias, TableBias):
        if bias.table.dim() != len(axes) + 1 or bias.table.shape[0] != num_heads or not bias.table.numel():
            sides = {1: 'columns', 2: 'rows, columns', 3: 'depth, rows, columns'}[len(axes)]
            raise ValueError(
                f'the table of TableBias must be ({num_heads}, {sides}) for num_heads={num_heads}, '
                f'got {tuple(bias.table.shape)}'
            )
        return
    hidden = bias.bias1.shape[0] if bias.bias1.dim() == 1 else None
    shapes = [tuple(x.shape) for x in (bias.weight1, bias.bias1, bias.weight2)]
    if shapes != [(hidden, len(axes)), (hidden,), (num_heads // groups, hidden)]:
        raise ValueError(
            f'weight1, bias1 and weight2 of LogBias must be (hidden, {len(axes)}), (hidden,) and '
            f'({num_heads // groups}, hidden) for {num_heads} heads in {groups} groups, '
            f'got {shapes[0]}, {shapes[1]} and {shapes[2]}'
        )


def check_position(position: Tensor, x: Tensor) -> None:
    """Positions ``(B or 1, G, Hk, Wk, 2)`` for a map of a batch of ``B``, or as many axes as it has."""
    check_devices(x, position=position)
    axes = x.dim() - 2
    if position.dim() != axes + 3 or position.shape[-1] != axes or not position.shape[1]:
        raise ValueError(f'position must be {_POSITIONS[axes]}, got {tuple(position.shape)}')
    if not position.is_floating_point():
        raise ValueError(f'position must hold floating-point numbers, got {position.dtype}')
    if position.shape[0] not in (1, len(x)):
        raise ValueError(f'positions of {position.shape[0]} images do not go with a batch of {len(x)}')


def check_same_map(query: Tensor, key: Tensor) -> None:
    """Local attention goes from a map to itself."""
    if query.shape != key.shape:
        raise ValueError(
            f'query, key and value must have the same shape, got {tuple(query.shape)} and {tuple(key.shape)}'
        )


def check_neighborhood(query: Tensor, bias_table: Tensor, num_heads: int, kernel_size: int) -> None:
    """The neighbourhood is odd and within the map, the table made for it."""
    check_devices(query, bias_table=bias_table)
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and positive, got {kernel_size}')
    if min(query.shape[2:]) < kernel_size:
        raise ValueError(
            f'a map of {query.shape[2]}x{query.shape[3]} is smaller than kernel_size={kernel_size}: pad it, '
            f'as mmdat.NeighborhoodAttention does'
        )
    side = 2 * kernel_size - 1
    if tuple(bias_table.shape) != (num_heads, side, side):
        raise ValueError(
            f'bias_table must be ({num_heads}, {side}, {side}) for num_heads={num_heads} and '
            f'kernel_size={kernel_size}, got {tuple(bias_table.shape)}'
        )


def check_windows(query: Tensor, bias_table: Tensor, num_heads: int, window_size: int, shift: int) -> None:
    """The windows fill the map, the table is made for them."""
    check_devices(query, bias_table=bias_table)
    if window_size < 1 or query.shape[2] % window_size or query.shape[3] % window_size:
        raise ValueError(
            f'window_size={window_size} does not divide the sides of a map of {query.shape[2]}x{query.shape[3]}: '
            f'pad it, as mmdat.WindowAttention does'
        )
    if not 0 <= shift < window_size:
        raise ValueError(f'shift must be at least 0 and less than window_size={window_size}, got {shift}')
    entries = (2 * window_size - 1) ** 2
    if tuple(bias_table.shape) != (entries, num_heads):
        raise ValueError(
            f'bias_table must be ({entries}, {num_heads}) for window_size={window_size} and num_heads={num_heads}, '
            f'got {tuple(bias_table.shape)}'
        )
