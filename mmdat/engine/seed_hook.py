"""A hook that makes randomness a function of seed and progress, so that a resumed run goes on as if uninterrupted."""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmdat.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed Python, NumPy and PyTorch anew at every iteration, and data-loading workers at every epoch.

    MMEngine restores neither the states of random generators nor those of workers. Here both follow from the run's
    seed and the iteration or epoch, so nothing has to be saved. Persistent workers are started anew at each epoch: a
    running one cannot be seeded. Runs counted in iterations need nothing for their workers, whose work up to the
    checkpoint MMEngine repeats; without workers (``num_workers=0``) their augmentations differ after resuming.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)
        loader = runner.train_dataloader
        init = loader.worker_init_fn
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and isinstance(init, partial) and 'seed' in init.keywords:
            loader.worker_init_fn = partial(init.func, **dict(init.keywords, seed=_mix(runner.seed, runner.epoch)))
            loader._iterator = None  # where persistent workers are kept

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._seed(runner)

    @staticmethod
    def _seed(runner: Runner) -> None:
        seed = _mix(runner.seed, runner.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)


def _mix(seed: int, step: int) -> int:
    """A seed of 31 bits, unrelated to those of other steps."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)
