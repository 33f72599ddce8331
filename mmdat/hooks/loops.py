"""MMEngine's training loops, with batches that follow from the run's seed and their number alone.

A resumed run gets the batches that come next, with the random augmentation that they would have had, and loads none of
those before. The order of the images is MMEngine's; each is loaded with a seed of its own, whichever worker loads it.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Optional, Union

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS
from mmengine.runner import loops
from torch.utils.data import BatchSampler, DataLoader, Sampler

from mmdat.registry import LOOPS

from .seed import mix, seed_all


@LOOPS.register_module()
class EpochBasedTrainLoop(loops.EpochBasedTrainLoop):
    """MMEngine's loop of this name; arguments are its own."""

    def __init__(self, runner: Any, dataloader: Union[DataLoader, dict], *args: Any, **kwargs: Any):
        super().__init__(runner, seeded(dataloader), *args, **kwargs)

    def run_epoch(self) -> None:
        _begin(self, endless=False)
        super().run_epoch()


@LOOPS.register_module()
class IterBasedTrainLoop(loops.IterBasedTrainLoop):
    """MMEngine's loop of this name; arguments are its own."""

    def __init__(self, runner: Any, dataloader: Union[DataLoader, dict], *args: Any, **kwargs: Any):
        super().__init__(runner, seeded(dataloader), *args, **kwargs)

    def run(self) -> None:
        if _begin(self, endless=True):
            # To skip what was trained on, OpenMMLab's own MMEngine takes that many batches; its fork calls skip_iter.
            by_taking = not hasattr(self, 'fast_forward_on_resume')
            self.dataloader_iterator = _Batches(self.dataloader, self.iter if by_taking else 0)
        return super().run()


def _begin(loop: Any, endless: bool) -> bool:
    batches = loop.dataloader.batch_sampler
    if not isinstance(batches, SeededBatchSampler):
        return False
    batches.begin(loop.runner.seed, loop.iter, endless)
    return True


def seeded(dataloader: Union[DataLoader, dict]) -> Union[DataLoader, dict]:
    """The config of a dataloader whose images are loaded with a seed each.

    One whose samplers are not named by configs is left as it is.
    """
    if not isinstance(dataloader, dict) or not isinstance(dataloader.get('sampler'), dict):
        return dataloader
    if not isinstance(dataloader.get('batch_sampler') or {}, dict):
        return dataloader
    changed = dict(dataloader)
    changed['dataset'] = dict(type=SeededDataset, dataset=dataloader['dataset'])
    changed['batch_sampler'] = dict(
        type=SeededBatchSampler,
        batch_sampler=dataloader.get('batch_sampler'),
        drop_last=changed.pop('drop_last', False),
    )
    return changed


class SeededBatchSampler(Sampler):
    """Batches of pairs of an index and the seed that its image is to be loaded with.

    Args:
        sampler: What gives the indices.
        batch_size: Images per batch.
        batch_sampler: The config of what makes batches of the indices; by default those that follow each other.
        drop_last: Without such a config: leave out a last batch that is not full.
    """

    def __init__(self, sampler: Any, batch_size: int, batch_sampler: Optional[dict] = None, drop_last: bool = False):
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self._config = batch_sampler
        self._batches = self._build()
        self._seed, self._first, self._endless = 0, 0, False

    def begin(self, seed: int, first: int, endless: bool) -> None:
        """Set what the next pass gives.

        Args:
            seed: The seed of the run.
            first: Number of the first batch, counted over the whole run.
            endless: Go on for ever, and leave out the batches before the first. Else the pass is an epoch, and the
                first batch is its own.
        """
        self._seed, self._first, self._endless = seed, first, endless
        if type(self.sampler) is InfiniteSampler:  # which goes on where it was left
            self.sampler = InfiniteSampler(self.sampler.dataset, self.sampler.shuffle, self.sampler.seed)
        self._batches = self._build()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = itertools.islice(self._passes(), self._first, None) if self._endless else self._batches
        rank = get_rank()
        for number, batch in enumerate(batches, self._first):
            yield [(index, mix(self._seed, rank, number, place)) for place, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self._batches)

    def _build(self) -> Any:
        if not self._config:
            return BatchSampler(self.sampler, self.batch_size, self.drop_last)
        return DATA_SAMPLERS.build(self._config, default_args=dict(sampler=self.sampler, batch_size=self.batch_size))

    def _passes(self) -> Iterator[list[int]]:
        for epoch in itertools.count():
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(epoch)
            yield from self._batches


class SeededDataset:
    """A dataset whose images are loaded with a seed each; in all else it is the dataset that it holds.

    Args:
        dataset: The dataset, or its config.
    """

    def __init__(self, dataset: Any):
        vars(self)['dataset'] = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, pair: tuple[int, int]) -> Any:
        index, seed = pair
        seed_all(seed)
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, pair: Any) -> dict[str, Any]:
        """What the annotations say of an image, by its index or by a pair."""
        return self.dataset.get_data_info(pair[0] if isinstance(pair, tuple) else pair)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)  # hooks change the pipeline in the course of training


class _Batches:
    """A loader's batches, in place of MMEngine's own iterator.

    Args:
        loader: The loader.
        unasked: How many calls of ``next`` are for batches that are left out.
    """

    def __init__(self, loader: DataLoader, unasked: int):
        self._loader, self._unasked = loader, unasked
        self._batches: Optional[Iterator[Any]] = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._unasked:
            self._unasked -= 1
            return None
        if self._batches is None:
            self._batches = iter(self._loader)
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Do nothing: the first batch is the right one already."""
