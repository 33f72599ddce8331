"""A hook that draws where deformable attention looks."""

import os.path as osp
from typing import Any, Optional

import numpy as np
from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from mmdat.models import DAT
from mmdat.registry import HOOKS
from mmdat.visualization import View, attention_sheets, save_sheets


@HOOKS.register_module()
class SamplingPointsHook(Hook):
    """Draw what deformable attention looks at, one sheet per stage: in testing, and during training if asked for.

    A sheet shows, over the image as the backbone got it, padding included, the sampled points, the keys that some
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
        self._train_image: Optional[Tensor] = None

    @master_only
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if self.interval and self._train_image is None:
            self._watch = _FirstInput(_backbone(runner))

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
            self._watch = _FirstInput(_backbone(runner))

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


class _FirstInput:
    """The first image that a backbone gets from now on. With test-time augmentation there are several."""

    def __init__(self, backbone: DAT):
        self._image: Optional[Tensor] = None
        self._handle = backbone.register_forward_pre_hook(self._keep)

    def _keep(self, module: DAT, args: tuple) -> None:
        if self._image is None:
            self._image = args[0][:1].detach().clone()

    def take(self) -> Optional[Tensor]:
        self._handle.remove()
        return self._image


def _sheets(runner: Runner, image: Tensor, note: str = '') -> dict[int, np.ndarray]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    backbone = _backbone(runner)
    view = View.of_input(image[0], model.data_preprocessor, backbone.arch.conv_stem)
    return attention_sheets(backbone, image, view, note=note)


def _backbone(runner: Runner) -> DAT:
    for module in runner.model.modules():
        if isinstance(module, DAT):
            return module
    raise ValueError('SamplingPointsHook needs a model with the backbone mmdat.DAT: leave the hook out of the config')
