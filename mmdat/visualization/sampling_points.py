"""Pictures of where deformable attention looks (the kind of figure 1 of DAT and figure 5 of DAT++)."""
import math
from pathlib import Path
from typing import Sequence, Tuple, Union

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mmdat.models.mixers import SamplingPoints


def position_to_pixel(position: Tensor, image_size: Tuple[int, int], stride: int, convention: str) -> Tensor:
    """Where normalised positions on a stage's map lie in the image that the backbone got.

    -1 and 1 are the centres of the map's first and last cell (``align_corners=True``). In DAT a cell is
    a patch of stride x stride pixels and its centre the patch's. In DAT++ cells are made by padded
    convolutions of odd kernels, and the first is centred on the first pixel.

    Args:
        position: ``(..., 2)``, (y, x) in [-1, 1].
        image_size: Height and width of the image in pixels, padding included.
        stride: Pixels per cell of the map.
        convention: ``'dat'`` or ``'dat++'``.

    Returns:
        ``(..., 2)``, (y, x) in pixels; whole numbers are centres of pixels.
    """
    if convention == 'dat':
        cells, centre = [side // stride for side in image_size], (stride - 1) / 2
    else:
        cells, centre = [math.ceil(side / stride) for side in image_size], 0.0
    last = position.new_tensor(cells) - 1
    return (position + 1) / 2 * last * stride + centre


def draw_sampling_points(image: np.ndarray,
                         layers: Sequence[SamplingPoints],
                         stride: int,
                         convention: str,
                         out_file: Union[str, Path],
                         title: str = '',
                         index: int = 0,
                         max_points: int = 400) -> None:
    """Draw one sheet: per deformable layer of a stage, the sampling points of one image.

    Crosses are the reference points, arrows the offsets, dots the sampled positions, in one colour per
    offset group.

    Args:
        image: What the backbone got, RGB uint8 ``(H, W, 3)``, padding included.
        layers: The layers' points, as :func:`mmdat.record_sampling` gives them.
        stride: Pixels per cell of the stage's map.
        convention: ``'dat'`` or ``'dat++'``, the generation of the backbone.
        out_file: The picture to write; its directory is made.
        title: Heading of the sheet.
        index: Which image of the batch.
        max_points: With more points per group, only every n-th along each axis is drawn.
    """
    height, width = image.shape[:2]
    side = 6.0
    figure = Figure(figsize=(side * len(layers), side * height / width + 1.0), layout='constrained', dpi=110)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title)
    for axes, points in zip(np.atleast_1d(figure.subplots(1, len(layers))), layers):
        axes.imshow(image, alpha=0.75)
        rows, cols, _ = points.reference.shape
        step = math.ceil(math.sqrt(rows * cols / max_points))
        start, end = (
            position_to_pixel(p[..., ::step, ::step, :].detach().float().cpu(), (height, width), stride, convention)
            for p in (points.reference, points.position[index]))
        start = start.flatten(0, 1)
        groups = end.flatten(1, 2)
        for group, end in enumerate(groups):
            colour = f'C{group % 10}'
            move = end - start
            axes.quiver(
                start[:, 1], start[:, 0], move[:, 1], move[:, 0], color=colour, angles='xy', scale_units='xy', scale=1,
                width=0.0025, headwidth=4, alpha=0.7)
            axes.scatter(end[:, 1], end[:, 0], s=14, color=colour, edgecolors='black', linewidths=0.4,
                         label=f'group {group + 1}', zorder=3)
        axes.scatter(start[:, 1], start[:, 0], s=14, c='black', marker='+', linewidths=0.8, label='reference')
        axes.set_title(f'{rows} x {cols} points, {len(groups)} groups')
        # References of DAT++ lie up to a cell outside of the image.
        axes.set_xlim(min(-0.5, float(start[:, 1].min()) - 1), max(width - 0.5, float(start[:, 1].max()) + 1))
        axes.set_ylim(max(height - 0.5, float(start[:, 0].max()) + 1), min(-0.5, float(start[:, 0].min()) - 1))
        axes.set_axis_off()
        axes.legend(loc='upper left', bbox_to_anchor=(0, 0), ncols=5, frameon=False, fontsize='small')
    Path(out_file).parent.mkdir(parents=True, exist_ok=True)
    canvas.print_figure(str(out_file))


def denormalise(inputs: Tensor, data_preprocessor: torch.nn.Module) -> np.ndarray:
    """The RGB uint8 ``(H, W, 3)`` image of a normalised ``(3, H, W)`` input of the backbone.

    Args:
        inputs: What the backbone got, one image.
        data_preprocessor: The one of mmdet, mmseg or mmpretrain that made it.
    """
    image = inputs.detach().float().cpu()
    if getattr(data_preprocessor, '_enable_normalize', False):
        image = image * data_preprocessor.std.cpu() + data_preprocessor.mean.cpu()
    # Images are loaded as BGR; the toolboxes differ in how they call the conversion.
    converted = any(getattr(data_preprocessor, name, False) for name in ('_channel_conversion', 'channel_conversion',
                                                                         'to_rgb'))
    image = image if converted else image.flip(0)
    return image.permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
