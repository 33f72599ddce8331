"""A hook that makes randomness a function of seed and progress, so that a resumed run goes on as if uninterrupted."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdat.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed Python, NumPy and PyTorch anew at every iteration.

    MMEngine does not restore the states of random generators. Here they follow from the run's seed, the process and the
    number of the iteration, so nothing has to be saved. Each process draws numbers of its own: dropout and stochastic
    depth leave out different things for different images. The loading of data is seeded by :mod:`mmdat.hooks.loops`.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Keep in checkpoints what the numbers depend on; a resumed run takes over these entries of the last one's."""
        runner.message_hub.update_info('world_size', get_world_size())
        runner.message_hub.update_info('cfg', runner.cfg.pretty_text)

    def before_train_epoch(self, runner: Runner) -> None:
        seed_all(mix(runner.seed, get_rank(), runner.iter))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        seed_all(mix(runner.seed, get_rank(), runner.iter))


def seed_all(seed: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def mix(*numbers: int) -> int:
    """A seed of 31 bits, unrelated to those of other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
