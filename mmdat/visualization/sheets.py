"""One picture per stage that shows what its deformable attention looks at."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import mmcv
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mmdat.models import DAT, DeformableAttention

from .attention import LayerAttention, observe
from .panels import draw_queries, draw_received, draw_sampling_points
from .view import View

PANEL = 5.0  # inches
DPI = 100


def layer_names(backbone: DAT) -> list[str]:
    """The layers that can be drawn: deformable attention."""
    return [name for name, module in backbone.named_modules() if isinstance(module, DeformableAttention)]


def attention_sheets(
    backbone: DAT,
    inputs: Tensor,
    view: View,
    queries: Optional[Sequence[tuple[float, float]]] = None,
    layers: Optional[Sequence[str]] = None,
    note: str = '',
) -> dict[int, np.ndarray]:
    """Run a backbone on an image and draw what its deformable attention looks at, one sheet per stage.

    A sheet has a row per layer: the sampled points, the keys that some queries attend to most, and a heat map of the
    attention that each place receives. The backbone runs in eval mode and is left in the mode it was in.

    Args:
        backbone: The backbone.
        inputs: Its input, one normalised image ``(1, 3, H, W)``.
        view: The picture to draw over, and how the input was made of it.
        queries: Pixels (y, x) of the picture; by default three on its diagonal.
        layers: Some of :func:`layer_names`; by default all.
        note: Added to the heading.

    Returns:
        RGB uint8 sheets by number of stage, from 1.
    """
    records = observe(backbone, inputs)
    stages: dict[int, dict[str, LayerAttention]] = {}
    for name in layer_names(backbone) if layers is None else layers:
        stages.setdefault(stage_of(name), {})[name] = records[name][0]
    return {
        stage + 1: render(draw_sheet(stage, attentions, view, queries or view.default_queries(), note))
        for stage, attentions in stages.items()
    }


def stage_of(layer: str) -> int:
    """The stage, counted from 0, that holds a layer by its name in the backbone."""
    return int(re.match(r'stages\.(\d+)\.', layer)[1])


def stride_of(layer: str) -> int:
    """Pixels of the backbone's input per cell of the map that a layer gets."""
    return 4 * 2 ** stage_of(layer)


@torch.no_grad()
def draw_sheet(
    stage: int, layers: dict[str, LayerAttention], view: View, queries: Sequence[tuple[float, float]], note: str = ''
) -> Figure:
    """The sheet of one stage (counted from 0), a row of three panels for each of its layers."""
    stride = 4 * 2**stage
    height, width = view.picture.shape[:2]
    row = PANEL * max(height / width, 0.4) + 0.7
    figure = Figure(figsize=(3 * PANEL + 0.6, row * len(layers) + 0.4), layout='constrained', dpi=DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(f'stage {stage + 1}{note}')
    rows = figure.subfigures(len(layers), 1, squeeze=False)[:, 0]
    for part, (name, attention) in zip(rows, layers.items()):
        part.suptitle(name, fontsize='medium')
        left, middle, right = part.subplots(1, 3)
        draw_sampling_points(left, view, stride, attention.points)
        draw_queries(middle, view, stride, attention, queries)
        draw_received(right, view, stride, attention)
    return figure


def render(figure: Figure) -> np.ndarray:
    """A figure as RGB uint8 ``(height, width, 3)``."""
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def save_sheets(sheets: dict[int, np.ndarray], directory: Union[str, Path]) -> list[Path]:
    """Write sheets as ``stage{n}.png`` into a directory, which is made; returns the files."""
    files = []
    for stage, sheet in sheets.items():
        files.append(Path(directory) / f'stage{stage}.png')
        mmcv.imwrite(mmcv.rgb2bgr(sheet), str(files[-1]))
    return files
