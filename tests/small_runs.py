"""Short runs of the demo configs through the real Runner, alone or in processes that talk to each other."""

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmdat.apis import train
from mmdat.config.load import load_config

ROOT = Path(__file__).parents[1]
TASKS = {'classifier': '{}nano_shapes', 'upernet': 'upernet_{}nano_shapes', 'maskrcnn': 'maskrcnn_{}nano_shapes'}
SIZE = 64


@HOOKS.register_module()
class Recorder(Hook):
    """Leaves the losses, learning rates and final weights of each process in ``work_dir/run{rank}.pth``."""

    def __init__(self):
        self.losses, self.rates = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: torch.as_tensor(value).item() for name, value in outputs.items()})
        self.rates.append(runner.optim_wrapper.optimizer.param_groups[0]['lr'])

    def after_train(self, runner):
        weights = {name.replace('module.', '', 1): value for name, value in runner.model.state_dict().items()}
        record = dict(losses=self.losses, rates=self.rates, weights=weights)
        torch.save(record, f'{runner.work_dir}/run{get_rank()}.pth')


def recorded(work_dir, rank=0):
    return torch.load(f'{work_dir}/run{rank}.pth')


def small_config(task, generation, work_dir, options=None):
    """A demo config that trains once over its data with SGD, and leaves nothing but what :class:`Recorder` writes.

    No image is flipped and no block dropped, so the steps do not depend on how images are shared out.
    """
    cfg = load_config(str(ROOT / f'configs/demo/{TASKS[task].format(generation)}.py'))
    cfg.work_dir = str(work_dir)
    cfg.train_cfg = dict(by_epoch=True, max_epochs=1)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    cfg.param_scheduler = None
    cfg.custom_hooks = [dict(type='Recorder')]
    cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=False)
    cfg.train_dataloader.dataset.pipeline = [
        step for step in cfg.train_dataloader.dataset.pipeline if step['type'] != 'RandomFlip'
    ]
    for part in ('train', 'test'):
        cfg[f'{part}_dataloader'].update(num_workers=0, persistent_workers=False, batch_size=2)
    cfg.merge_from_dict(
        {
            'default_hooks.checkpoint.interval': 100,
            'default_hooks.logger.interval': 1,
            'log_processor': dict(by_epoch=True),
            'visualizer.name': Path(work_dir).name,  # there is one per name in a process
            **({'model.data_preprocessor.size': (SIZE, SIZE)} if task == 'upernet' else {}),
            **(options or {}),
        }
    )
    return cfg


def train_alone(*args, **kwargs):
    """Train with a :func:`small_config` in this process; what was recorded."""
    cfg = small_config(*args, **kwargs)
    train(cfg)
    return recorded(cfg.work_dir)


def in_processes(count, function, *args):
    """Call a function in processes that MMEngine's launcher ``'pytorch'`` can connect, as torchrun's are."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    # Forked, for importing the toolboxes again takes longer than the runs.
    mp.start_processes(_process, (count, port, function, args), nprocs=count, start_method='fork')


def _process(rank, count, port, function, args):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    function(*args)
