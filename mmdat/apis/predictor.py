"""Predictions of a trained model for images at hand, by the inferencer of the toolbox that the config belongs to."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmdat.checkpoints.schemes import is_remote
from mmdat.checkpoints.without_code import reading_without_code
from mmdat.config.checks import check_fit, check_run
from mmdat.config.walk import innermost_datasets
from mmdat.errors import RunError
from mmdat.models.checkpoint import unwrap

from .toolbox import TOOLBOXES, toolbox


class Predictor:
    """A model with its weights, for detection, segmentation or classification.

    Args:
        cfg: The whole config; ``default_scope`` says which toolbox's inferencer is taken.
        checkpoint: A local file, of training or of the official release, or ``mmdat://`` and a name.
        device: Where the model runs, such as ``'cpu'`` or ``'cuda:0'``.
        trust_files: Let the checkpoint run code that it may contain.

    Attributes:
        scope: mmdet, mmseg or mmpretrain.
        classes: The names of the classes.
        inferencer: The toolbox's inferencer, with the model.

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
        with self._toolbox(), reading_without_code(trust_files) as files:
            check_run(Config(dict(load_from=checkpoint)), training=False, read=files.read)
            weights = files.read(checkpoint)
            cfg = _for_inference(cfg)
            meta = _dataset_meta(weights, next(innermost_datasets(cfg.test_dataloader.dataset)))
            weights['meta'] = dict(weights.get('meta') or {}, dataset_meta=meta)
            self.classes = list(meta['classes'])
            self.inferencer = _build(self.scope, cfg, checkpoint, device)
        check_fit(self.inferencer.model, unwrap(weights), checkpoint)
        if self.scope == 'mmdet':  # which prefers the config's colours, whatever their number
            self.inferencer.visualizer.dataset_meta = meta

    def predict(self, images: list[np.ndarray]) -> list[Any]:
        """Predict for a batch of images.

        Args:
            images: BGR, ``(H, W, 3)`` uint8; of one size if there are several.

        Returns:
            The data samples of the toolbox, on the CPU. Objects without a pixel, as Mask2Former predicts for queries
            that find nothing, are left out.
        """
        with self._toolbox():
            results = self.inferencer(images, batch_size=len(images), return_datasamples=True)
        if self.scope == 'mmdet':
            results = results['predictions']
        # mmseg hands out a single sample without a list.
        samples = [sample.cpu() for sample in (results if isinstance(results, (list, tuple)) else [results])]
        for sample in samples:
            if 'pred_instances' in sample:
                found = sample.pred_instances
                sample.pred_instances = found[(found.bboxes[:, 2:] > found.bboxes[:, :2]).all(1)]
        return samples

    def draw(self, image: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        """The image with a prediction drawn over it.

        Args:
            image: BGR, ``(H, W, 3)`` uint8.
            sample: What :meth:`predict` returned for it.
            score_thr: Boxes below this score are not drawn.

        Returns:
            BGR, of the image's size.
        """
        rgb = np.ascontiguousarray(image[..., ::-1])
        with self._toolbox():
            return np.ascontiguousarray(self._draw(rgb, sample, score_thr)[..., ::-1])

    def _draw(self, rgb: np.ndarray, sample: Any, score_thr: float) -> np.ndarray:
        if self.scope == 'mmdet':
            # mmdet's visualizer stumbles over panoptic maps in which no segment was found.
            if 'pred_panoptic_seg' in sample and bool((sample.pred_panoptic_seg.sem_seg == len(self.classes)).all()):
                sample = sample.clone()
                del sample.pred_panoptic_seg
            return self.inferencer.visualize([rgb], [sample], return_vis=True, pred_score_thr=score_thr)[0]
        if self.scope == 'mmseg':
            return self.inferencer.visualize([rgb], [sample], return_vis=True, opacity=0.6)[0]
        if self.inferencer.visualizer is None:
            from mmpretrain.visualization import UniversalVisualizer

            self.inferencer.visualizer = UniversalVisualizer()
        return self.inferencer.visualizer.visualize_cls(rgb, sample, classes=self.classes, draw_gt=False)

    @contextmanager
    def _toolbox(self) -> Iterator[None]:
        """While it lasts, types are looked for in the model's toolbox, and mmpretrain shows no progress bar."""
        with toolbox(self.scope):
            if self.scope != 'mmpretrain':
                yield
                return
            from mmpretrain.utils import progress

            before, progress.disable_progress_bar = progress.disable_progress_bar, True
            try:
                yield
            finally:
                progress.disable_progress_bar = before


def _for_inference(cfg: Config) -> Config:
    """Without annotations, and with a visualizer that writes nothing itself."""
    cfg = copy.deepcopy(cfg)
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = [step for step in dataset['pipeline'] if 'Annotations' not in step['type']]
    if 'visualizer' in cfg:
        cfg.visualizer.vis_backends = None  # pictures are written by the caller
    return cfg


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f'the device {device!r} cannot be used here ({reason}): choose another with --device, such as cpu'
        ) from error


def _dataset_meta(checkpoint: dict[str, Any], dataset: dict[str, Any]) -> dict[str, Any]:
    """Names and colours of the classes: the checkpoint's, which knows what it was trained on, or the config's."""
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
        palette = np.random.RandomState(0).randint(0, 256, (len(meta['classes']), 3)).tolist()
    # mmdet's visualizer takes a list for several colours.
    return dict(classes=tuple(meta['classes']), palette=[tuple(colour) for colour in palette])


def _build(scope: str, cfg: Config, weights: str, device: str) -> Any:
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer

        return DetInferencer(cfg, weights, device=device, show_progress=False)
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer

        inferencer = MMSegInferencer(cfg, weights, device=device)
        inferencer.show_progress = False  # mmseg 1.2 has no argument for it
        return inferencer
    from mmpretrain import ImageClassificationInferencer

    return ImageClassificationInferencer(cfg, pretrained=weights, device=device)
