"""From an image file to the input of the backbone in testing, and the way back to the image's pixels."""

from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS
from torch import Tensor

from mmdat.config.walk import innermost_datasets
from mmdat.errors import RunError
from mmdat.visualization import View, to_picture

from .toolbox import toolbox

# Transforms of test pipelines that change the size of the image. Pads add pixels on the right and at the bottom.
_RESIZES = ('Resize', 'ResizeEdge', 'ResizeShortestEdge', 'ResizeToMultiple', 'FixScaleResize')
_CROPS = ('CenterCrop',)
_PADS = ('Pad',)


def network_input(cfg: Config, path: Union[str, Path], conv_stem: bool) -> tuple[Tensor, View]:
    """What the backbone gets for an image in testing, ``(1, 3, H, W)``, and the view of it over the original image.

    The config's test pipeline and data preprocessor are applied, annotations left out.

    Args:
        cfg: The whole config.
        path: Image file.
        conv_stem: ``arch.conv_stem`` of the backbone.

    Raises:
        RunError: If there is no such image, or a transform of the pipeline moves pixels in a way not known here.
    """
    if not Path(path).is_file():
        raise RunError(f'there is no image {Path(path).absolute()}: correct the path')
    with toolbox(cfg.get('default_scope')):
        transforms = _test_pipeline(cfg)
        results: dict[str, Any] = dict(img_path=str(path), img_id=0)
        try:
            while results.get('img') is None:
                results = transforms.pop(0)(results)
        except Exception as error:
            raise RunError(
                f'{path} is not a readable image: give a JPEG, PNG or other file that OpenCV reads'
            ) from error
        picture = to_picture(results['img'])
        scale, shift = np.ones(2), np.zeros(2)
        for transform in transforms:
            before = results['img'].shape[:2]
            results = transform(results)
            if 'img' not in results:  # packed
                break
            scale, shift = _follow(transform, np.array(before), np.array(results['img'].shape[:2]), scale, shift)
        inputs = _preprocess(cfg, results)
    return inputs, View(picture, tuple(inputs.shape[2:]), conv_stem, tuple(scale), tuple(shift))


def _test_pipeline(cfg: Config) -> list[Any]:
    """The transforms of the test data; the first ones load the image."""
    datasets = innermost_datasets(cfg.get('test_dataloader', {}).get('dataset', {}))
    dataset = next((one for one in datasets if one.get('pipeline')), None)
    if dataset is None:
        raise RunError(f'the config {cfg.filename} has no test_dataloader.dataset.pipeline for the image: add one')
    transforms = [TRANSFORMS.build(transform) for transform in dataset['pipeline']]
    return [transform for transform in transforms if 'Annotations' not in type(transform).__name__]


def _follow(
    transform: Any, before: np.ndarray, after: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of :class:`View` behind a transform, from those in front of it and the two image sizes."""
    name = type(transform).__name__
    if name in _RESIZES:
        return scale * after / before, shift * after / before
    if name in _CROPS and (after <= before).all():
        return scale, shift - np.round((before - after) / 2)
    if name in _PADS or (before == after).all():
        return scale, shift
    raise RunError(
        f'the test pipeline has {name}, and where that moves pixels is not known: use '
        f'{", ".join(_RESIZES + _CROPS + _PADS)}'
    )


def _preprocess(cfg: Config, results: dict) -> Tensor:
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if cfg.default_scope == 'mmpretrain':  # as its classifiers do
        preprocessor = dict(dict(type='ClsDataPreprocessor'), **preprocessor)
    batch = dict(inputs=[results['inputs']], data_samples=[results['data_samples']])
    with torch.no_grad():
        return MODELS.build(preprocessor)(batch)['inputs']
