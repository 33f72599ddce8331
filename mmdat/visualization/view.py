"""Where a stage's map, the input of the backbone and a picture of it lie on each other.

Pixels are (y, x) throughout; whole numbers are centres of pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from .picture import to_picture


def position_to_pixel(position: Tensor, image_size: tuple[int, int], stride: int, conv_stem: bool) -> Tensor:
    """Where normalised positions on a stage's map lie in the image that the backbone got.

    -1 and 1 are the centres of the map's first and last cell (``align_corners=True``). In DAT and DAT+ a cell is
    a patch of stride x stride pixels and its centre the patch's. In DAT++ cells are made by padded
    convolutions of odd kernels, and the first is centred on the first pixel.

    Args:
        position: ``(..., 2)``, (y, x) in [-1, 1].
        image_size: Height and width of the image in pixels, padding included.
        stride: Pixels per cell of the map.
        conv_stem: Whether overlapping convolutions make the cells: ``arch.conv_stem`` of the backbone.

    Returns:
        ``(..., 2)``, (y, x) in pixels.
    """
    cells, centre = _cells(image_size, stride, conv_stem)
    last = position.new_tensor(cells) - 1
    return (position + 1) / 2 * last * stride + centre


def _cells(image_size: Sequence[int], stride: int, conv_stem: bool) -> tuple[list[int], float]:
    """Size of a stage's map, and the pixel that its first cell is centred on."""
    if conv_stem:
        return [math.ceil(side / stride) for side in image_size], 0.0
    return [side // stride for side in image_size], (stride - 1) / 2


@dataclass
class View:
    """A picture, and how the input of the backbone was made of it.

    Attributes:
        picture: RGB uint8 ``(height, width, 3)``.
        input_size: Height and width of what the backbone got, padding included.
        conv_stem: Whether overlapping convolutions make the cells: ``arch.conv_stem`` of the backbone.
        scale: (y, x), input pixels per pixel of the picture.
        shift: (y, x), where the picture's upper left corner (not the centre of its first pixel) came to lie in the
            input; not zero after cropping.
    """

    picture: np.ndarray
    input_size: tuple[int, int]
    conv_stem: bool
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of_input(
        cls,
        inputs: Tensor,
        data_preprocessor: torch.nn.Module,
        conv_stem: bool,
        image_size: Optional[Sequence[int]] = None,
    ) -> 'View':
        """The view whose picture is the input itself, ``(C, H, W)``, without the padding on its right and below it.

        Args:
            inputs: What the backbone got, one image.
            data_preprocessor: What made it.
            conv_stem: ``arch.conv_stem`` of the backbone.
            image_size: Height and width of the image in it; by default all of it.
        """
        height, width = image_size or inputs.shape[1:]
        return cls(denormalise(inputs, data_preprocessor)[:height, :width], tuple(inputs.shape[1:]), conv_stem)

    def to_input(self, pixel: Tensor) -> Tensor:
        """Pixels of the picture, ``(..., 2)``, to pixels of the input."""
        return (pixel + 0.5) * pixel.new_tensor(self.scale) + pixel.new_tensor(self.shift) - 0.5

    def to_picture(self, pixel: Tensor) -> Tensor:
        """Pixels of the input, ``(..., 2)``, to pixels of the picture."""
        return (pixel + 0.5 - pixel.new_tensor(self.shift)) / pixel.new_tensor(self.scale) - 0.5

    def locate(self, position: Tensor, stride: int) -> Tensor:
        """Where normalised positions ``(..., 2)`` on a stage's map lie in the picture."""
        position = position.detach().float().cpu()
        return self.to_picture(position_to_pixel(position, self.input_size, stride, self.conv_stem))

    def cell(self, pixel: Sequence[float], stride: int) -> tuple[int, int]:
        """Row and column of the cell of a stage's map that is nearest to a pixel of the picture."""
        cells, centre = _cells(self.input_size, stride, self.conv_stem)
        index = (self.to_input(torch.tensor(pixel, dtype=torch.float64)) - centre) / stride
        row, col = [min(max(round(float(i)), 0), n - 1) for i, n in zip(index, cells)]
        return row, col

    def extent(self, stride: int) -> tuple[float, float, float, float]:
        """Borders of a stage's map in the picture: left, right, bottom, top, as matplotlib takes them."""
        cells, centre = _cells(self.input_size, stride, self.conv_stem)
        first = torch.tensor([centre - stride / 2] * 2)
        (top, left), (bottom, right) = [
            self.to_picture(corner).tolist() for corner in (first, first + torch.tensor(cells) * stride)
        ]
        return left, right, bottom, top

    def inside(self, cells: Sequence[int], stride: int) -> Tensor:
        """Which cells of a stage's map, ``(rows, columns)``, are centred in the picture, not in the padding."""
        _, centre = _cells(self.input_size, stride, self.conv_stem)
        height, width = self.picture.shape[:2]
        rows, cols = [torch.arange(count) * stride + centre for count in cells]
        pixels = self.to_picture(torch.stack(torch.meshgrid(rows, cols, indexing='ij'), dim=-1))
        return ((pixels >= -0.5) & (pixels < pixels.new_tensor([height, width]) - 0.5)).all(-1)

    def seen(self, pixel: Sequence[float]) -> bool:
        """Whether a pixel of the picture is a pixel of the input: some are cut away by cropping."""
        inside = self.to_input(torch.tensor(pixel, dtype=torch.float64))
        return all(-0.5 <= p <= side - 0.5 for p, side in zip(inside.tolist(), self.input_size))

    def default_queries(self) -> list[tuple[float, float]]:
        """Three pixels on the diagonal of what both the picture and the input have: the centre and half way to it."""
        corners = self.to_picture(torch.tensor([[-0.5, -0.5], [side - 0.5 for side in self.input_size]]))
        first = corners[0].clamp(min=0)
        last = torch.minimum(corners[1], torch.tensor(self.picture.shape[:2]) - 1.0)
        return [tuple((first + (last - first) * part).round().tolist()) for part in (0.5, 0.25, 0.75)]


def denormalise(inputs: Tensor, data_preprocessor: torch.nn.Module) -> np.ndarray:
    """The RGB uint8 ``(H, W, 3)`` image of a normalised ``(C, H, W)`` input of the backbone.

    Args:
        inputs: What the backbone got, one image.
        data_preprocessor: The one of mmdet, mmseg or mmpretrain that made it.
    """
    image = _without_mean(inputs, data_preprocessor)
    if len(image) == 3 and _turns_channels(data_preprocessor):
        image = image.flip(0)
    if image.min() >= -1 and 1.5 < image.max() <= 256:  # 8 bits, but for roundings
        image = image.round().clamp(0, 255)
    return to_picture(image.permute(1, 2, 0).numpy())


def _without_mean(inputs: Tensor, data_preprocessor: torch.nn.Module) -> Tensor:
    image = inputs.detach().float().cpu()
    if hasattr(data_preprocessor, 'mean') and hasattr(data_preprocessor, 'std'):  # which are there if it normalises
        image = image * data_preprocessor.std.cpu() + data_preprocessor.mean.cpu()
    return image


def _turns_channels(data_preprocessor: torch.nn.Module) -> bool:
    """Whether a preprocessor makes RGB of BGR. The toolboxes keep that under different names; a blue image tells it."""
    blue = torch.zeros(3, 32, 32, dtype=torch.uint8)
    blue[0] = 255
    with torch.no_grad():
        image = _without_mean(data_preprocessor(dict(inputs=[blue], data_samples=None))['inputs'][0], data_preprocessor)
    return bool(image[2].max() > image[0].max())
