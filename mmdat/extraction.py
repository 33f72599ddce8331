"""Feature maps and vectors of images, with the preparation that the weights were tested with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np
import torch
from torch import Tensor

from .errors import RunError
from .models import DAT

# Those of ImageNet, which all published weights were trained with; RGB, of values from 0 to 1.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
#: Resize and centre crop for models whose weights :meth:`mmdat.DAT.from_pretrained` has not loaded.
_USUAL = (256, 224)


class Features(NamedTuple):
    """What :func:`features` returns, on the model's device.

    Attributes:
        maps: Of each of the four stages, ``(N, C, H, W)``, at strides 4, 8, 16 and 32, before any output norm.
        pooled: ``(N, C)``, the mean over the last stage's map. Behind its output norm, if the model has one, it is what
            the classifier's head gets.
    """

    maps: tuple[Tensor, ...]
    pooled: Tensor


def features(
    model: Union[str, DAT],
    images: Union[Any, Sequence[Any]],
    size: Union[int, Sequence[int], None] = None,
    batch_size: int = 16,
) -> Features:
    """Feature maps and pooled vectors of images.

    Images are prepared as the authors tested the weights: resized to a square (bicubic), cropped at the centre, and
    normalised with the mean and deviation of ImageNet.

    Args:
        model: The name of published weights, as :meth:`mmdat.DAT.from_pretrained` takes it; then the model runs on the
            CPU. Or a model, on whatever device; it is left as it was.
        images: One image or several: the path of a file, an image of PIL, or an array ``(H, W, 3)`` uint8, RGB (those
            of OpenCV are BGR: turn them by ``image[..., ::-1]``).
        size: Resize images to this size, one number or (height, width), and do not crop them.
        batch_size: How many images go through the model at once.

    Raises:
        RunError: If an image cannot be read or used.
        CheckpointError: If there are no weights of this name, or no way to them.
    """
    images = [images] if isinstance(images, (str, Path, np.ndarray)) or not isinstance(images, Sequence) else images
    if not images:
        raise RunError('there are no images to extract features of: give at least one')
    if isinstance(model, str):
        model = DAT.from_pretrained(model, out_indices=(3,))
    resize, crop = _sizes(model, size)
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        parts = []
        for i in range(0, len(images), batch_size):
            batch = torch.stack([_prepare(image, resize, crop) for image in images[i : i + batch_size]])
            with torch.no_grad():
                parts.append(_forward(model, batch.to(parameter)))
    finally:
        model.train(was_training)
    maps = tuple(torch.cat(stage) for stage in zip(*(part.maps for part in parts)))
    return Features(maps, torch.cat([part.pooled for part in parts]))


def _forward(model: DAT, images: Tensor) -> Features:
    maps: list[Tensor] = []
    hooks = [stage.register_forward_hook(lambda module, args, output: maps.append(output)) for stage in model.stages]
    try:
        outputs = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    normed = dict(zip(model.out_indices, outputs)).get(len(maps) - 1, maps[-1])
    return Features(tuple(maps), normed.mean((2, 3)))


def _sizes(model: DAT, size: Union[int, Sequence[int], None]) -> tuple[Sequence[int], Sequence[int]]:
    """To which (height, width) images are resized, and then cropped."""
    if size is not None:
        size = (size, size) if isinstance(size, int) else tuple(size)
        return size, size
    weights = model.pretrained
    resize, crop = (weights.test_resize, weights.test_crop) if weights and weights.is_classifier else _USUAL
    return (resize, resize), (crop, crop)


def _prepare(image: Any, resize: Sequence[int], crop: Sequence[int]) -> Tensor:
    """The network's input for an image, ``(3, H, W)``."""
    from PIL import Image

    height, width = resize
    picture = _open(image).resize((width, height), Image.BICUBIC)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    pixels = np.array(picture.crop((left, top, left + crop[1], top + crop[0])))
    values = torch.from_numpy(pixels).permute(2, 0, 1) / 255
    return (values - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def _open(image: Any) -> Any:
    """An image of PIL, RGB and upright."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise RunError('images are read and resized by Pillow, which is not installed: pip install pillow') from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise RunError(
                f'an array must be an RGB image (height, width, 3) of uint8, got {image.shape} of {image.dtype}'
            )
        return Image.fromarray(image)
    if not isinstance(image, (str, Path)):
        return image.convert('RGB')
    if not Path(image).is_file():
        raise RunError(f'there is no image {Path(image).absolute()}: correct the path')
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert('RGB')
    except OSError as error:
        raise RunError(f'{image} is not a readable image: give a JPEG, PNG or other file that Pillow reads') from error
