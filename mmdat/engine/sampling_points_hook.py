"""A hook that draws where deformable attention looks."""
import os.path as osp
import re
from contextlib import ExitStack
from typing import Any, Dict, List, Optional

from mmengine.dist import master_only
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from mmdat.models import DAT, record_sampling
from mmdat.models.mixers import SamplingPoints
from mmdat.registry import HOOKS
from mmdat.visualization.sampling_points import denormalise, draw_sampling_points


@HOOKS.register_module()
class SamplingPointsHook(Hook):
    """Draw the sampling points of one image of the test set, one sheet per stage with deformable attention.

    The points are those of the test's own forward pass, over the image as the backbone got it, padding
    included. Use it with ``custom_hooks=[dict(type='mmdat.SamplingPointsHook')]``.

    Args:
        image: Number of the test batch whose first image is drawn.
        out_dir: Where the sheets ``stage{n}.png`` go; a relative path is below the work directory.
    """

    def __init__(self, image: int = 0, out_dir: str = 'sampling_points'):
        self.image = image
        self.out_dir = out_dir
        self._recording: Optional[ExitStack] = None
        self._inputs: List[Tensor] = []
        self._points: Dict[str, List[SamplingPoints]] = {}

    @master_only
    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx != self.image:
            return
        backbone = _backbone(runner)
        self._inputs = []
        self._recording = ExitStack()
        self._points = self._recording.enter_context(record_sampling(backbone))
        handle = backbone.register_forward_pre_hook(lambda module, inputs: self._inputs.append(inputs[0]))
        self._recording.callback(handle.remove)

    @master_only
    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if self._recording is None:
            return
        self._recording.close()
        self._recording = None
        backbone = _backbone(runner)
        image = denormalise(self._inputs[0][0], _model(runner).data_preprocessor)
        # With test-time augmentation or sliding windows there are several passes: the first is drawn.
        stages: Dict[int, List[SamplingPoints]] = {}
        for name, calls in self._points.items():
            if calls:  # pooling without offsets samples nothing
                stages.setdefault(int(re.match(r'stages\.(\d+)\.', name)[1]), []).append(calls[0])
        directory = osp.join(runner.work_dir, self.out_dir)
        for stage, layers in stages.items():
            draw_sampling_points(
                image,
                layers,
                stride=4 * 2**stage,
                convention=backbone.arch.generation,
                out_file=osp.join(directory, f'stage{stage + 1}.png'),
                title=f'stage {stage + 1}: {len(layers)} deformable layer(s)')
        runner.logger.info(f'Pictures of the sampling points are in {directory}')
        self._inputs, self._points = [], {}


def _model(runner: Runner) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _backbone(runner: Runner) -> DAT:
    for module in runner.model.modules():
        if isinstance(module, DAT):
            return module
    raise ValueError('SamplingPointsHook needs a model with the backbone mmdat.DAT: leave the hook out of the config')
