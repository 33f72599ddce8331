"""A hook that makes randomness a function of seed and progress, so that a resumed run goes on as if uninterrupted."""

import copy
import itertools
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

from mmdat.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Seed Python, NumPy and PyTorch anew at every iteration, and the loading of data as well.

    MMEngine restores neither the states of random generators nor those of workers. Here both follow from the run's
    seed and its progress, so nothing has to be saved. In runs by epochs, data-loading workers are seeded and so started
    anew at each epoch. In runs by iterations every image is loaded with a seed of its own, in a worker or not, and a
    resumed run loads nothing of what was trained on before.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        self._seed(runner)
        loop, loader = runner.train_loop, runner.train_dataloader
        init = loader.worker_init_fn
        if isinstance(loop, EpochBasedTrainLoop) and isinstance(init, partial) and 'seed' in init.keywords:
            loader.worker_init_fn = partial(init.func, **dict(init.keywords, seed=_mix(runner.seed, runner.epoch)))
            loader._iterator = None  # where persistent workers are kept
        numbered = hasattr(loader.batch_sampler, 'sampler') and not isinstance(loader.dataset, IterableDataset)
        if isinstance(loop, IterBasedTrainLoop) and numbered:
            # OpenMMLab's own MMEngine skips batches by taking them, its fork by a call.
            unasked = 0 if hasattr(loop.dataloader_iterator, 'skip_iter') else runner.iter
            loop.dataloader_iterator = None  # together with its workers
            loader._iterator = None
            loop.dataloader_iterator = _Batches(loader, runner.seed, runner.iter, unasked)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._seed(runner)

    @staticmethod
    def _seed(runner: Runner) -> None:
        _seed_all(_mix(runner.seed, runner.iter))


class _Batches:
    """The batches of a run by iterations from one on, in place of MMEngine's iterator over a loader.

    Args:
        loader: The loader that MMEngine built.
        seed: The seed of the run.
        start: How many batches are left out; none of them is loaded.
        unasked: How many calls of ``next`` are for batches that are left out.
    """

    def __init__(self, loader: DataLoader, seed: int, start: int, unasked: int):
        # With its number of workers, its way to collate and so on; but no DataLoader lets these two be replaced.
        own = copy.copy(loader)
        vars(own).update(dataset=_Seeded(loader.dataset), batch_sampler=_Numbered(loader.batch_sampler, seed, start))
        self._batches = iter(own)
        self._unasked = unasked

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._unasked:
            self._unasked -= 1
            return None
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the first batch is the right one already."""


class _Numbered:
    """Endless batches of pairs of an index and the seed that it is to be loaded with."""

    def __init__(self, batch_sampler: Any, seed: int, start: int):
        self.batch_sampler, self.seed, self.start = batch_sampler, seed, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank = get_rank()
        for number, batch in enumerate(itertools.islice(self._batches(), self.start, None), self.start):
            yield [(index, _mix(self.seed, rank, number, place)) for place, index in enumerate(batch)]

    def _batches(self) -> Iterator[list[int]]:
        sampler = self.batch_sampler.sampler
        if hasattr(sampler, '_indices_of_rank') and hasattr(sampler, 'indices'):
            sampler.indices = sampler._indices_of_rank()  # an InfiniteSampler goes on where it was left
        for epoch in itertools.count():
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
            yield from self.batch_sampler


class _Seeded:
    """A dataset whose images are loaded with a seed each."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, pair: tuple[int, int]) -> Any:
        index, seed = pair
        _seed_all(seed)
        return self.dataset[index]


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _mix(*numbers: int) -> int:
    """A seed of 31 bits, unrelated to those of other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
