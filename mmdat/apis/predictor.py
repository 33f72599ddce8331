"""Predictions of a trained model for images at hand, which are read and prepared as in testing."""

import copy
from pathlib import Path
from typing import Any, Union

import numpy as np
import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import load_checkpoint

from mmdat.checkpoints.schemes import is_remote
from mmdat.checkpoints.without_code import reading_without_code
from mmdat.config.checks import check_fit, check_run
from mmdat.config.own_data.colours import well_apart
from mmdat.config.walk import innermost_datasets
from mmdat.errors import RunError
from mmdat.models.checkpoint import unwrap

from .drawing import draw_label_map, draw_objects, shrink, shrink_map
from .model import build_model
from .toolbox import TOOLBOXES, toolbox


class Predictor:
    """A model with its weights, for detection, segmentation or classification.

    Args:
        cfg: The whole config; images are read and prepared by the pipeline of its test data.
        checkpoint: A local file, of training or of the official release, or ``mmdat://`` and a name.
        device: Where the model runs, such as ``'cpu'`` or ``'cuda:0'``.
        trust_files: Let the checkpoint run code that it may contain.

    Attributes:
        scope: mmdet, mmseg or mmpretrain.
        classes: The names of the classes.
        palette: Their RGB colours.
        model: The model, in eval mode.

    Raises:
        RunError: If config, checkpoint and device cannot be used, or do not fit each other.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str, trust_files: bool = False):
        self.scope = cfg.get('default_scope')
        if self.scope not in TOOLBOXES:
            raise RunError(f'inference needs default_scope {", ".join(TOOLBOXES)}, but the config has {self.scope}')
        _check_device(device)
        if is_remote(checkpoint):
            raise RunError(f'the checkpoint must be a local file: download {checkpoint} first')
        with toolbox(self.scope), reading_without_code(trust_files) as files:
            check_run(Config(dict(load_from=checkpoint)), training=False, read=files.read)
            weights = files.read(checkpoint)
            cfg = _for_inference(cfg)
            dataset = next(innermost_datasets(cfg.test_dataloader.dataset))
            meta = dataset_meta(cfg, weights)
            self.classes, self.palette = list(meta['classes']), meta['palette']
            self._pipeline = [TRANSFORMS.build(step) for step in dataset.pipeline]
            self.model = _build(cfg, checkpoint, device)
        check_fit(self.model, unwrap(weights), checkpoint)

    def load(self, path: Union[str, Path]) -> dict[str, Any]:
        """An image file as the first transforms of the pipeline load it, up to that which leaves ``'img'``.

        Raises:
            RunError: If they cannot.
        """
        results: dict[str, Any] = dict(img_path=str(path), img_id=0)
        with toolbox(self.scope):
            for done, step in enumerate(self._pipeline, 1):
                try:
                    results = step(results)
                except OSError as error:
                    raise RunError(error.strerror or str(error)) from error
                except Exception as error:  # of OpenCV, Pillow, tifffile, or a transform of the user
                    raise RunError('it is no image that OpenCV knows') from error
                if results is None:
                    break
                if results.get('img') is not None:
                    return dict(results, steps_done=done)
        raise RunError('it is no image that OpenCV knows')

    def predict(self, images: list[Union[dict[str, Any], str, Path, np.ndarray]]) -> list[Any]:
        """Predict for a batch of images.

        Args:
            images: What :meth:`load` returned, or files, or arrays as the pipeline's loader would hand them out (BGR,
                ``(H, W, 3)``); of one size if there are several.

        Returns:
            The data samples of the toolbox, on the CPU. Objects without a pixel, as Mask2Former predicts for queries
            that find nothing, are left out.
        """
        with toolbox(self.scope), torch.no_grad():
            data = pseudo_collate([self._prepared(image) for image in images])
            samples = [sample.cpu() for sample in self.model.test_step(data)]
        for sample in samples:
            if 'pred_instances' in sample:
                found = sample.pred_instances
                sample.pred_instances = found[(found.bboxes[:, 2:] > found.bboxes[:, :2]).all(1)]
        return samples

    def _prepared(self, image: Union[dict[str, Any], str, Path, np.ndarray]) -> dict[str, Any]:
        if isinstance(image, np.ndarray):
            if getattr(self._pipeline[0], 'to_float32', False):
                image = image.astype(np.float32)
            shape = image.shape[:2]
            results = dict(img=image, img_path=None, img_id=0, img_shape=shape, ori_shape=shape, steps_done=1)
        else:
            results = dict(image) if isinstance(image, dict) else self.load(image)
        for step in self._pipeline[results.pop('steps_done') :]:
            results = step(results)
        return results

    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """The image with a prediction drawn over it.

        Args:
            image: BGR, ``(H, W, 3)`` uint8.
            sample: What :meth:`predict` returned for it.
            score_thr: Boxes below this score are not drawn.

        Returns:
            BGR, of the image's size, or smaller: its longer side has at most ``mmdat.apis.drawing.DRAWN_SIDE`` pixels.
        """
        rgb = np.ascontiguousarray(shrink(image)[..., ::-1])
        if self.scope == 'mmdet':
            drawn = draw_objects(rgb, sample, self.classes, self.palette, score_thr)
        elif self.scope == 'mmseg':
            labels = shrink_map(sample.pred_sem_seg.data[0]).numpy()
            drawn = draw_label_map(rgb, labels, self.classes, self.palette)
        else:
            from mmpretrain.visualization import UniversalVisualizer

            drawn = UniversalVisualizer().visualize_cls(rgb, sample, classes=self.classes, draw_gt=False)
        return np.ascontiguousarray(drawn[..., ::-1])


def _for_inference(cfg: Config) -> Config:
    """Without annotations, and with the preprocessor where the model looks for it."""
    cfg = copy.deepcopy(cfg)
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = [step for step in dataset['pipeline'] if 'Annotations' not in str(step['type'])]
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f'the device {device!r} cannot be used here ({reason}): choose another with --device, such as cpu'
        ) from error


def dataset_meta(cfg: Config, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Names and colours of the classes: the checkpoint's, which knows what it was trained on, or the config's.

    Args:
        cfg: The whole config.
        checkpoint: What its file holds, or nothing.

    Returns:
        ``classes``, names, and ``palette``, an (R, G, B) of each.

    Raises:
        RunError: If neither names the classes.
    """
    dataset = next(innermost_datasets(cfg.test_dataloader.dataset))
    with toolbox(cfg.get('default_scope')):
        meta = dict(DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).metainfo)
    saved = checkpoint.get('meta') or {}
    saved = saved.get('dataset_meta') or dict(classes=saved.get('CLASSES'), palette=saved.get('PALETTE'))
    meta.update({key.lower(): value for key, value in saved.items() if value})
    if not meta.get('classes'):
        raise RunError(
            'neither the checkpoint nor the config names the classes: set '
            'test_dataloader.dataset.metainfo.classes in the config'
        )
    palette = meta.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < len(meta['classes']):
        palette = well_apart(len(meta['classes']))
    return dict(classes=tuple(meta['classes']), palette=[tuple(colour) for colour in palette])


def _build(cfg: Config, checkpoint: str, device: str) -> nn.Module:
    model = build_model(cfg)
    load_checkpoint(model, checkpoint, map_location='cpu')
    return model.to(device).eval()
