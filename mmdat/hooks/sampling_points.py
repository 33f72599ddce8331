"""A hook that draws where deformable attention looks."""

import os.path as osp
from typing import Any, NamedTuple, Optional

import numpy as np
import torch.nn as nn
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmdat.models import DAT
from mmdat.models.wrapped import innermost_model
from mmdat.registry import HOOKS
from mmdat.visualization import View, attention_sheets, save_sheets


@HOOKS.register_module()
class SamplingPointsHook(Hook):
    """Draw what deformable attention looks at, one sheet per stage: in testing, and during training if asked for.

    A sheet shows, over the image as the backbone got it, without its padding, the sampled points, the keys that some
    queries attend to most, and the attention that each place receives. Use it with
    ``custom_hooks=[dict(type='mmdat.SamplingPointsHook')]``.

    In training the image is always the first of the run's first batch, so sheets can be compared. They go through
    the runner's visualizer, as ``deformation_stage{n}``, with the number of iterations as step. The backbone runs once
    more for each, in eval mode, which leaves training as it would be.

    Args:
        image: Number of the test batch whose first image is drawn.
        out_dir: Where the sheets ``stage{n}.png`` of testing go; a relative path is below the work directory.
        interval: Draw every so many epochs, or iterations, of training; 0 draws none.
        by_epoch: Whether ``interval`` counts epochs.

    Raises:
        ValueError: If ``interval`` is negative, or the model has no backbone of type :class:`mmdat.DAT`.
    """

    def __init__(self, image: int = 0, out_dir: str = 'sampling_points', interval: int = 0, by_epoch: bool = True):
        if interval < 0:
            raise ValueError(f'interval must be 0 (no sheets in training) or positive, got {interval}')
        self.image = image
        self.out_dir = out_dir
        self.interval = interval
        self.by_epoch = by_epoch
        self._watch: Optional[_FirstInput] = None
        self._train_image: Optional[_Input] = None

    @master_only
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.interval and self._train_image is None:
            self._watch = _FirstInput(innermost_model(runner.model))

    @master_only
    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._watch is not None:
            self._train_image, self._watch = self._watch.take(), None
        if self.interval and not self.by_epoch and self.every_n_train_iters(runner, self.interval):
            self._log(runner, runner.iter + 1)

    @master_only
    def after_train_epoch(self, runner: Runner) -> None:
        if self.interval and self.by_epoch and self.every_n_epochs(runner, self.interval):
            self._log(runner, runner.iter)

    @master_only
    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == self.image:
            self._watch = _FirstInput(innermost_model(runner.model))

    @master_only
    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._watch is None:
            return
        image, self._watch = self._watch.take(), None
        directory = osp.join(runner.work_dir, self.out_dir)
        save_sheets(_sheets(runner, image), directory)
        runner.logger.info(f'Pictures of the sampling points are in {directory}')

    def _log(self, runner: Runner, step: int) -> None:
        for stage, sheet in _sheets(runner, self._train_image, note=f' after {step} iterations').items():
            runner.visualizer.add_image(f'deformation_stage{stage}', sheet, step)


class _Input(NamedTuple):
    """An image as the backbone got it, ``(1, C, H, W)``, and height and width of it without padding, if known."""

    image: Tensor
    size: Optional[tuple[int, int]]


class _FirstInput:
    """The first image that the backbone of a model gets from now on. With test-time augmentation there are several."""

    def __init__(self, model: nn.Module):
        self._image: Optional[Tensor] = None
        self._size: Optional[tuple[int, int]] = None
        self._handles = [
            model.data_preprocessor.register_forward_hook(self._keep_size),
            _backbone(model).register_forward_pre_hook(self._keep),
        ]

    def _keep_size(self, module: nn.Module, args: tuple, outputs: dict) -> None:
        samples = outputs.get('data_samples')
        if self._image is None and samples:
            self._size = samples[0].metainfo.get('img_shape', ())[:2] or None

    def _keep(self, module: DAT, args: tuple) -> None:
        if self._image is None:
            self._image = args[0][:1].detach().clone()

    def take(self) -> _Input:
        for handle in self._handles:
            handle.remove()
        return _Input(self._image, self._size)


def _sheets(runner: Runner, first: _Input, note: str = '') -> dict[int, np.ndarray]:
    model = innermost_model(runner.model)
    backbone = _backbone(model)
    view = View.of_input(first.image[0], model.data_preprocessor, backbone.arch.conv_stem, first.size)
    return attention_sheets(backbone, first.image, view, note=note)


def _backbone(model: nn.Module) -> DAT:
    for module in model.modules():
        if isinstance(module, DAT):
            return module
    raise ValueError('SamplingPointsHook needs a model with the backbone mmdat.DAT: leave the hook out of the config')
