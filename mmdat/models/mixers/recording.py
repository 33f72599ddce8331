"""Recording what deformable attention samples."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Callable

import torch
import torch.nn as nn
from torch import Tensor

from .coordinates import indices
from .deformable import DeformableAttention
from .offset_network import SamplingPoints


@contextmanager
def record_sampling(model: nn.Module) -> Iterator[dict[str, list[SamplingPoints]]]:
    """Record what every deformable layer of a model samples while the ``with`` block runs.

    For visualisation and analysis, by forward hooks: forward passes return what they always return, and layers that
    nobody watches do no extra work. Hooks have no effect on what :func:`torch.compile` has compiled already: record the
    model that it was made of.

    Example:
        >>> with record_sampling(model) as points:
        ...     model(images)
        >>> offset, reference, position = points['stages.2.blocks.1.mixer'][0]

    Args:
        model: Any module that holds deformable attention.

    Yields:
        A dict from the layer's name in ``model`` to its :class:`SamplingPoints`, one per call of the
        layer (with ``with_cp=True`` the backward pass calls it once more).
    """
    records: dict[str, list[SamplingPoints]] = {}
    with ExitStack() as stack:
        for name, layer in model.named_modules():
            if isinstance(layer, DeformableAttention):
                records[name] = []
                stack.enter_context(_watch(layer, records[name].append))
        yield records


def _watch(layer: DeformableAttention, keep: Callable[[SamplingPoints], None]) -> Any:
    """Hand every call's points to a function; returns the handle of the hook."""
    if layer.offset_net is not None:
        return layer.offset_net.register_forward_hook(lambda module, args, points: keep(points))

    def keep_cells(module: DeformableAttention, args: tuple, kwargs: dict, out: Tensor) -> None:
        _, context = module.inputs(*args, **kwargs)
        keep(_pooled_points(context, module.stride))

    return layer.register_forward_hook(keep_cells, with_kwargs=True)


def _pooled_points(x: Tensor, stride: Sequence[int]) -> SamplingPoints:
    """The centres of the pooled cells of a map ``(B, C, H, W)``, as points of one group that do not move."""
    like = x.new_empty((), dtype=torch.promote_types(x.dtype, torch.float32))
    axes = []
    for size, length in zip(x.shape[2:], stride):
        cell = min(length, size)
        axes.append(((indices(size // cell, like) * 2 + 1) * cell - size) / max(size - 1, 1))
    reference = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
    position = reference.expand(len(x), 1, *reference.shape)
    return SamplingPoints(torch.zeros_like(position), reference, position)
