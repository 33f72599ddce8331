"""Long runs: caches are bounded, processes and files that a run opens are closed again."""

import functools
import gc
import importlib
import os
import pkgutil
from argparse import Namespace
from pathlib import Path

import psutil
import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmdat
from mmdat.datasets import make_shapes
from mmdat.engine.runner import load_config

ROOT = Path(__file__).parents[1]
PROCESS = psutil.Process()


def demo_config(name, work_dir='work', **options):
    return load_config(
        Namespace(
            config=str(ROOT / f'configs/demo/{name}.py'),
            override=None,
            work_dir=str(work_dir),
            launcher='none',
            local_rank=0,
            cfg_options=options or None,
        )
    )


def test_caches_are_bounded():
    for module in pkgutil.walk_packages(mmdat.__path__, 'mmdat.'):
        if not module.name.startswith('mmdat.configs'):
            for thing in vars(importlib.import_module(module.name)).values():
                if isinstance(thing, functools._lru_cache_wrapper):
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
