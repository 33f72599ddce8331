"""Long runs: memory stays as it is, caches are bounded, processes and files that a run opens are closed again."""

import ctypes
import gc
import importlib
import os
import pkgutil
from pathlib import Path

import numpy as np
import psutil
import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner
from small_runs import small_config

import mmdat
from mmdat.config.load import load_config
from mmdat.datasets import make_shapes

ROOT = Path(__file__).parents[1]
PROCESS = psutil.Process()


def demo_config(name, work_dir='work', **options):
    return load_config(
        str(ROOT / f'configs/demo/{name}.py'),
        work_dir=str(work_dir),
        options=options or None,
    )


def test_caches_are_bounded():
    for module in pkgutil.walk_packages(mmdat.__path__, 'mmdat.'):
        # Kernels need a newer Triton than the oldest PyTorch brings.
        if not module.name.startswith(('mmdat.configs', 'mmdat.ops.triton.')):
            for thing in vars(importlib.import_module(module.name)).values():
                if hasattr(thing, 'cache_parameters'):
                    size = thing.cache_parameters()['maxsize']
                    assert size is not None and size <= 1024, f'{module.name}.{thing.__name__}'


class Count(Hook):
    """Child processes and open files after each epoch."""

    def __init__(self):
        self.counts = []

    def after_val_epoch(self, runner, metrics=None):
        self.counts.append(processes_and_files())


def processes_and_files():
    return len(PROCESS.children(recursive=True)), len(os.listdir('/proc/self/fd'))


@pytest.mark.slow
def test_workers_do_not_leak(tmp_path, monkeypatch):
    """As many processes and open files in each epoch; none is left behind by a run."""
    make_shapes(tmp_path / 'data/shapes', num_train=8, num_val=4, size=64)
    monkeypatch.chdir(tmp_path)
    options = {
        f'{part}_dataloader.{key}': value
        for part in ('train', 'val')
        for key, value in dict(num_workers=2, persistent_workers=True, batch_size=2).items()
    }
    left = []
    for i in range(2):
        cfg = demo_config(
            'datnano_shapes',
            f'work{i}',
            **options,
            **{'train_cfg.max_epochs': 4, 'train_cfg.val_interval': 1, 'custom_hooks': []},
        )
        cfg.experiment_name = cfg.visualizer.name = f'run {i}'
        count = Count()
        runner = Runner.from_cfg(cfg)
        runner.register_hook(count)
        runner.train()
        assert len(count.counts) == 4 and len(set(count.counts[1:])) == 1, count.counts
        assert count.counts[0][0] <= 4
        del runner
        gc.collect()
        left.append(processes_and_files())
    assert all(children == 0 for children, _ in left)
    # The log files stay open with their loggers, one or two of each run.
    assert left[1][1] - left[0][1] <= 2


LIBC = ctypes.CDLL(None)


class MallInfo(ctypes.Structure):
    """What glibc's allocator says of itself, in bytes."""

    _names = 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


class Watch(Hook):
    """Memory after every fifth iteration, in KiB: what is allocated, and what is resident. And all sizes of images."""

    def __init__(self):
        self.allocated, self.resident, self.sizes = [], [], []
        LIBC.mallinfo2.restype = MallInfo

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.sizes.append(data_batch['inputs'][0].shape[1:])
        if self.every_n_train_iters(runner, 5):
            gc.collect()
            LIBC.malloc_trim(0)
            info = LIBC.mallinfo2()
            self.allocated.append((info.uordblks + info.hblkhd) / 1024)
            self.resident.append(PROCESS.memory_info().rss / 1024)


def slope(values):
    """Slope of a straight line by least squares, and half of its 95 % confidence interval."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    y = np.asarray(values) - np.mean(values)
    gradient = (x @ y) / (x @ x)
    error = np.sqrt(np.sum((y - gradient * x) ** 2) / (len(x) - 2) / (x @ x))
    return gradient, 1.96 * error


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(LIBC, 'mallinfo2'), reason='needs glibc 2.33')
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_memory_stays_as_it_is(generation, tmp_path, monkeypatch, capsys):
    """Mask R-CNN over images of changing sizes, 300 iterations after 150 that fill caches, such as oneDNN's.

    Keeping no more than the smallest image would take 48 KiB an iteration, or its map of the first stage 32 KiB.
    Resident memory moves more than what is allocated in it: with every size, blocks come to lie elsewhere.
    """
    make_shapes(tmp_path / 'data/shapes', num_train=450, num_val=1, size=96)
    monkeypatch.chdir(tmp_path)
    cfg = small_config('maskrcnn', generation, 'work', {'train_dataloader.batch_size': 1, 'custom_hooks': []})
    cfg.train_dataloader.dataset.pipeline.insert(
        2, dict(type='RandomResize', scale=[(64, 64), (224, 224)], keep_ratio=False)
    )
    cfg.model.data_preprocessor.pad_size_divisor = 1
    cfg.randomness = dict(seed=0)
    watch = Watch()
    runner = Runner.from_cfg(cfg)
    runner.register_hook(watch)
    runner.train()
    sizes = len(set(watch.sizes[150:]))
    assert len(watch.resident) == 90 and sizes > 290
    (allocated, error), (resident, resident_error) = (
        [part / 5 for part in slope(series[30:])] for series in (watch.allocated, watch.resident)
    )
    with capsys.disabled():
        print(
            f'\n{generation}, KiB per iteration at {sizes} sizes: allocated {allocated:.2f} +- {error:.2f}, '
            f'resident {resident:.1f} +- {resident_error:.1f}'
        )
    assert allocated + error < 4
    assert resident + resident_error < 32
