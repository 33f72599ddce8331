"""The attention weights of deformable layers, for analysis; the layers themselves never hold them all."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn as nn
from torch import Tensor

from mmdat.models import DeformableAttention, record_sampling
from mmdat.models.mixers import SamplingPoints
from mmdat.ops import deform_sample
from mmdat.ops.budget import scores_at_a_time
from mmdat.ops.position_bias import PositionBias


@dataclass
class LayerAttention:
    """One deformable layer in one forward pass; the weights are computed when asked for, at least in float32.

    Shapes are those of maps. Signals have one axis in the place of ``H, W``, volumes three; what is said of rows is
    said of their first axis.

    Attributes:
        query: Projected queries ``(B, C, H, W)``.
        key: Projected keys ``(B, C, Hk, Wk)``.
        bias: What is added to the scores.
        points: What was sampled, for each of the ``G`` offset groups.
        num_heads: Heads; head j belongs to group ``j // (num_heads / G)``.
        key_stride: Cells of the query map per key, along each axis.
        map_size: ``(H, W)`` of the map that was sampled.
    """

    query: Tensor
    key: Tensor
    bias: Optional[PositionBias]
    points: SamplingPoints
    num_heads: int
    key_stride: tuple[int, ...]
    map_size: tuple[int, ...]

    def weights(self, start: int, stop: int) -> Tensor:
        """Attention of the queries in some rows of the map to all keys, ``(B, heads, rows * W, Hk * Wk)``."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        query, key = [
            x.to(dtype).flatten(2).unflatten(1, (self.num_heads, -1)) for x in (self.query[:, :, start:stop], self.key)
        ]
        scores = query.transpose(2, 3) @ key * query.shape[2] ** -0.5
        if self.bias is not None:
            row = math.prod(self.query.shape[3:])
            scores = scores + self.bias.evaluate(slice(start * row, stop * row))
        return scores.softmax(-1)

    def chunks(self, chunk_bytes: Optional[int] = None) -> Iterator[tuple[int, int]]:
        """Ranges of rows that together are the whole map, a budget of scores each; see :mod:`mmdat.ops.budget`."""
        height = self.query.shape[2]
        row = self.query[:, 0, 0].numel() * self.num_heads * self.key[0, 0].numel()
        rows = max(scores_at_a_time(self.query.device, torch.float32, chunk_bytes) // row, 1)
        for start in range(0, height, rows):
            yield start, min(start + rows, height)

    def of_query(self, row: int, *cell: int) -> Tensor:
        """Attention of one query, averaged over the heads, to each key of each group, ``(B, G, Hk, Wk)``; sums to 1.

        Args:
            row, cell: Where the query lies, an index along each axis.
        """
        weights = self.weights(row, row + 1).unflatten(2, (1, *self.query.shape[3:]))
        return self._per_group(weights[(slice(None), slice(None), 0, *cell)]) / self.num_heads

    def received(self, chunk_bytes: Optional[int] = None) -> Tensor:
        """Attention that each key of each group receives, over all queries and heads, ``(B, G, Hk, Wk)``."""
        return self._per_group(sum(self.weights(*rows).sum(2) for rows in self.chunks(chunk_bytes)))

    def received_map(self) -> Tensor:
        """Attention that each cell of the map receives, ``(B, H, W)``.

        What a key receives goes to the cells that it was interpolated from (of a map up to four), with the weights of
        the interpolation. So all cells together receive ``H * W * heads``, less what falls outside of the map.
        """
        received = self.received()
        blank = received.new_zeros(*received.shape[:2], *self.map_size, requires_grad=True)
        with torch.enable_grad():
            # Sampling is linear in the map: its gradient is the way back from keys to cells.
            sampled = deform_sample(blank, self.points.position.to(received.dtype))
            return torch.autograd.grad(sampled, blank, received)[0].sum(1)

    def _per_group(self, weights: Tensor) -> Tensor:
        """Sum ``(B, heads, N)`` over the heads of each group: ``(B, G, Hk, Wk)``."""
        groups = self.points.position.shape[1]
        return weights.unflatten(1, (groups, -1)).sum(2).unflatten(2, tuple(self.key.shape[2:]))


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, list[LayerAttention]]]:
    """Record what the attention of every deformable layer of a model follows from while the ``with`` block runs.

    Forward passes return what they always return. A layer that pools in place of sampling is recorded as one that
    samples the centres of its cells.

    Example:
        >>> with torch.no_grad(), record_attention(model) as layers:
        ...     model(images)
        >>> received = layers['stages.2.blocks.1.mixer'][0].received()

    Args:
        model: Any module that holds deformable attention.

    Yields:
        A dict from the layer's name in ``model`` to its :class:`LayerAttention`, one per call of the layer.
    """
    records: dict[str, list[LayerAttention]] = {}
    with ExitStack() as stack:
        points = stack.enter_context(record_sampling(model))
        for name, layer in model.named_modules():
            if isinstance(layer, DeformableAttention):
                records[name] = []
                for handle in _watch(layer, points[name], records[name]):
                    stack.callback(handle.remove)
        yield records


@torch.no_grad()
def observe(model: nn.Module, inputs: Tensor) -> dict[str, list[LayerAttention]]:
    """What :func:`record_attention` records of one call of a model in eval mode; it is left in the mode it was in."""
    training = model.training
    try:
        with record_attention(model.eval()) as records:
            model(inputs)
    finally:
        model.train(training)
    return records


def _watch(layer: DeformableAttention, points: list[SamplingPoints], record: list[LayerAttention]) -> list:
    projected = {}

    def keep(name: str):
        # Linear layers see maps with the channels last.
        return lambda module, args, out: projected.__setitem__(name, out.detach().movedim(-1, 1))

    def assemble(module, args, kwargs, out) -> None:
        query, position = projected['query'], points[-1].position.detach()
        with torch.no_grad():
            bias = layer.score_bias(query, position)
        size = tuple(layer.inputs(*args, **kwargs)[1].shape[2:])
        record.append(LayerAttention(query, projected['key'], bias, points[-1], layer.num_heads, layer.stride, size))

    return [
        layer.proj_q.register_forward_hook(keep('query')),
        layer.proj_k.register_forward_hook(keep('key')),
        layer.register_forward_hook(assemble, with_kwargs=True),
    ]
