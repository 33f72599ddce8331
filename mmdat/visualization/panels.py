"""The three pictures of one deformable layer: where it samples, what queries attend to, what receives attention."""

import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from mmdat.models.mixers import SamplingPoints

from .attention import LayerAttention
from .view import View

DASH = 1.5  # in widths of the line


def draw_sampling_points(axes: Axes, view: View, stride: int, points: SamplingPoints, max_points: int = 600) -> None:
    """Reference points as crosses, offsets as arrows, sampled points as dots, in one colour per offset group.

    This is the kind of figure 1 of DAT and figure 5 of DAT++.

    Args:
        axes: Where to draw.
        view: The picture, and where the layer's map lies in it.
        stride: Pixels of the backbone's input per cell of the map.
        points: What the layer sampled; the first image of the batch is drawn.
        max_points: With more points in all groups together, only every n-th along each axis is drawn.
    """
    rows, cols, _ = points.reference.shape
    step = math.ceil(math.sqrt(points.position[0, ..., 0].numel() / max_points))
    start, end = [
        view.locate(p[..., ::step, ::step, :], stride).flatten(-3, -2) for p in (points.reference, points.position[0])
    ]
    axes.imshow(view.picture, alpha=0.75)
    for group, target in enumerate(end):
        move = target - start
        axes.quiver(
            start[:, 1],
            start[:, 0],
            move[:, 1],
            move[:, 0],
            color=f'C{group % 10}',
            angles='xy',
            scale_units='xy',
            scale=1,
            width=0.0025,
            headwidth=4,
            alpha=0.7,
        )
        axes.scatter(
            target[:, 1],
            target[:, 0],
            s=14,
            color=f'C{group % 10}',
            edgecolors='black',
            linewidths=0.4,
            label=f'group {group + 1}',
            zorder=3,
        )
    axes.scatter(start[:, 1], start[:, 0], s=14, c='black', marker='+', linewidths=0.8, label='reference')
    _legend(axes)
    shown = '' if step == 1 else f', 1 in {step * step} shown'
    axes.set_title(f'sampled points: {rows} x {cols}{shown}, {len(end)} group(s)')
    _frame(axes, view, start)


def draw_queries(
    axes: Axes,
    view: View,
    stride: int,
    attention: LayerAttention,
    queries: Sequence[tuple[float, float]],
    count: int = 20,
) -> None:
    """The most attended keys of some queries as circles, their area in proportion to the attention.

    A query is marked by a star where it is and has the colour of its circles. Attention is the mean over the heads;
    keys of all groups take part.

    Args:
        axes: Where to draw.
        view: The picture, and where the layer's map lies in it.
        stride: Pixels of the backbone's input per cell of the map.
        attention: The layer; the first image of the batch is drawn.
        queries: Pixels (y, x) of the picture; each stands for the cell of the map that is nearest.
        count: Circles per query.
    """
    position = view.locate(attention.points.position[0], stride).flatten(0, 2)
    found = []
    for query in queries:
        weights = attention.of_query(*view.cell(query, stride))[0].flatten().float().cpu()
        found.append(weights.topk(min(count, len(weights))))
    largest = max(float(weights[0]) for weights, _ in found)
    axes.imshow(view.picture, alpha=0.75)
    for number, (query, (weights, keys)) in enumerate(zip(queries, found)):
        colour = f'C{number % 10}'
        # Queries often share keys: each draws its own dashes of the rings, and leaves gaps for the others'.
        dashes = 'solid' if len(queries) == 1 else (number * DASH, (DASH, (len(queries) - 1) * DASH))
        axes.scatter(
            position[keys, 1],
            position[keys, 0],
            s=500 * weights / largest,
            facecolors='none',
            edgecolors=colour,
            linewidths=2.0,
            linestyles=[dashes],
        )
        axes.scatter(
            query[1],
            query[0],
            s=160,
            color=colour,
            marker='*',
            edgecolors='white',
            linewidths=0.8,
            zorder=4,
            label=f'query {query[1]:g},{query[0]:g}',
        )
    _legend(axes)
    axes.set_title(f'most attended keys: up to {largest * len(position):.1f} x the mean')
    _frame(axes, view, position)


def draw_received(axes: Axes, view: View, stride: int, attention: LayerAttention) -> None:
    """A heat map of how much attention each place of the picture receives, over queries and heads; 1 is the mean.

    Places in the padding of the input are left out. The colours end where only one place in fifty receives more.

    Args:
        axes: Where to draw.
        view: The picture, and where the layer's map lies in it.
        stride: Pixels of the backbone's input per cell of the map.
        attention: The layer; the first image of the batch is drawn.

    Raises:
        ValueError: If the picture does not fill half a cell of the layer's map.
    """
    heat = received_heat(attention, view, stride)
    inside = heat.isfinite()
    if not inside.any():
        height, width = view.picture.shape[:2]
        raise ValueError(
            f'the picture of {height}x{width} pixels is smaller than a cell of a map to be drawn, which has '
            f'{stride}x{stride}: take a larger picture'
        )
    axes.imshow(view.picture.mean(-1), cmap='gray')
    heat_image = axes.imshow(
        heat,
        extent=view.extent(stride),
        cmap='inferno',
        alpha=0.6,
        interpolation='bilinear',
        vmin=0,
        vmax=float(heat[inside].quantile(0.98)) or float(heat[inside].max()),
    )
    axes.figure.colorbar(heat_image, ax=axes, fraction=0.046, pad=0.02, extend='max')
    axes.set_title(f'attention received, up to {float(heat[inside].max()):.1f} x the mean')
    _frame(axes, view, padding=False)


def received_heat(attention: LayerAttention, view: View, stride: int) -> Tensor:
    """How much attention the cells of the map receive, ``(rows, columns)``; 1 is the mean, padding is NaN."""
    heat = _blur(attention.received_map()[0].float().cpu(), attention.key_stride)
    inside = view.inside(heat.shape, stride)
    return (heat / heat[inside].mean()).masked_fill(~inside, float('nan'))


def _blur(heat: Tensor, key_stride: tuple[int, int]) -> Tensor:
    """Spread over one key's distance, so that evenly spaced keys of equal attention give an even picture."""
    rows, cols = (step - 1 for step in key_stride)
    box = lambda x: F.avg_pool2d(x, key_stride, stride=1)  # noqa: E731
    return box(box(F.pad(heat[None], (cols, cols, rows, rows))))[0]


def _legend(axes: Axes) -> None:
    axes.legend(
        loc='upper left',
        bbox_to_anchor=(0, 0),
        ncols=5,
        frameon=False,
        fontsize='small',
        columnspacing=0.8,
        handletextpad=0.2,
    )


def _frame(axes: Axes, view: View, points: Optional[Tensor] = None, padding: bool = True) -> None:
    """Show the whole picture, with the padding of the input, and points: references of DAT++ may lie a cell outside."""
    height, width = view.picture.shape[:2]
    corners = torch.tensor([[-0.5, -0.5], [height - 0.5, width - 0.5]])
    if padding:
        of_input = torch.tensor([[-0.5, -0.5], [side - 0.5 for side in view.input_size]])
        corners = torch.cat([corners, view.to_picture(of_input)])
    if points is not None:
        corners = torch.cat([corners, points])
    (top, left), (bottom, right) = corners.amin(0).tolist(), corners.amax(0).tolist()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_axis_off()
