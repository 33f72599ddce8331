"""A hook that ends a training from which nothing more can come."""

from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdat.errors import RunError
from mmdat.registry import HOOKS


@HOOKS.register_module()
class FiniteWeightsHook(Hook):
    """End a training as soon as weights are seen to be infinite or NaN, which they stay.

    They are looked at before the checkpoint of an epoch is written, which would take the place of a good one.

    Args:
        interval: Iterations from one look to the next; there is one at the end of each epoch and of the training, too.

    Raises:
        RunError: If a weight is not finite.
    """

    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 50):
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            _check(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        _check(runner, runner.iter)


def _check(runner: Runner, iterations: int) -> None:
    if not all(parameter.isfinite().all() for parameter in runner.model.parameters()):
        raise RunError(
            f'after iteration {iterations} there are weights that are infinite or NaN, so nothing more is learnt: '
            f'lower optim_wrapper.optimizer.lr, or bound gradients with optim_wrapper.clip_grad.max_norm=1'
        )
