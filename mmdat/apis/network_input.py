"""From a config and an image file to the backbone, its input in testing, and the way back to the image's pixels."""

import importlib
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from mmdat.checkpoints.without_code import reading_without_code
from mmdat.errors import CheckpointError, RunError
from mmdat.models import DAT
from mmdat.models.checkpoint import backbone_entries, unwrap
from mmdat.visualization import View

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
# Transforms of test pipelines that change the size of the image. Pads add pixels on the right and at the bottom.
_RESIZES = ('Resize', 'ResizeEdge', 'ResizeShortestEdge', 'ResizeToMultiple', 'FixScaleResize')
_CROPS = ('CenterCrop',)
_PADS = ('Pad',)


def load_backbone(cfg: Config, checkpoint: Optional[str] = None) -> tuple[DAT, bool]:
    """The backbone of a config, in eval mode, and whether its weights are trained.

    Weights are those of the checkpoint, or without one those that the config's ``init_cfg`` names.

    Raises:
        RunError: If the config is of no known toolbox or has no backbone ``mmdat.DAT``.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise RunError(f'default_scope of the config must be one of {", ".join(TOOLBOXES)}, got {scope}')
    importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    backbone_cfg = _find_backbone(cfg.get('model'))
    if backbone_cfg is None:
        raise RunError(f'the config {cfg.filename} has no backbone of type mmdat.DAT: choose another config')
    backbone = MODELS.build(backbone_cfg).eval()
    checkpoint = checkpoint or _pretrained(backbone_cfg.get('init_cfg'))
    if checkpoint:
        _load(backbone, checkpoint)
    return backbone, bool(checkpoint)


def _pretrained(init_cfg: Union[dict, list[dict], None]) -> Optional[str]:
    """The checkpoint that ``init_cfg`` of a backbone names, if any."""
    init_cfgs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg or {}]
    return next((one.get('checkpoint') for one in init_cfgs if one.get('type') == 'Pretrained'), None)


def _find_backbone(node: Any) -> Optional[dict]:
    if isinstance(node, dict):
        if node.get('type') in ('mmdat.DAT', DAT):
            return node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        return next((found for found in map(_find_backbone, node) if found is not None), None)
    return None


@reading_without_code()
def _load(backbone: DAT, path: str) -> None:
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')  # init_cfg may have an address
    try:
        missing = backbone.load_state_dict(backbone_entries(unwrap(checkpoint)), strict=False).missing_keys
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    # Only the output norms may be missing: those of classifiers are not those of detectors.
    missing = [key for key in missing if not key.startswith('norm')]
    if missing:
        raise CheckpointError(
            f'{path} lacks weights of the backbone, such as {missing[0]}: choose a checkpoint of this config'
        )


def network_input(cfg: Config, path: Union[str, Path], conv_stem: bool) -> tuple[Tensor, View]:
    """What the backbone gets for an image in testing, ``(1, 3, H, W)``, and the view of it over the original image.

    The config's test pipeline and data preprocessor are applied, annotations left out.

    Args:
        cfg: The config; its scope must be registered, as :func:`load_backbone` does.
        path: Image file.
        conv_stem: ``arch.conv_stem`` of the backbone.

    Raises:
        RunError: If there is no such image, or a transform of the pipeline moves pixels in a way not known here.
    """
    if not Path(path).is_file():
        raise RunError(f'there is no image {Path(path).absolute()}: correct the path')
    load, *transforms = _test_pipeline(cfg)
    try:
        results = load(dict(img_path=str(path), img_id=0))
    except Exception as error:
        raise RunError(f'{path} is not a readable image: give a JPEG, PNG or other file that OpenCV reads') from error
    picture = np.ascontiguousarray(results['img'][..., ::-1]).astype(np.uint8)  # loaded as BGR
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
    """The transforms of the test data; the first loads the image."""
    dataset = cfg.get('test_dataloader', {}).get('dataset', {})
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
        if inner is None:
            raise RunError(f'the config {cfg.filename} has no test_dataloader.dataset.pipeline for the image: add one')
        dataset = inner
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
