"""What a run changes in its config. Each function takes a config and returns another; none changes the one it gets."""

import copy
import itertools
import os
from pathlib import Path
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.visualization import Visualizer

from mmdat.errors import RunError

from .walk import dicts, innermost_datasets

# The runs of this process.
_RUNS = itertools.count(1)
_SYNC_BN = ('SyncBN', 'MMSyncBN')
_LOOPS = {
    **dict.fromkeys(('EpochBasedTrainLoop', 'mmengine.EpochBasedTrainLoop', EpochBasedTrainLoop), 'Epoch'),
    **dict.fromkeys(('IterBasedTrainLoop', 'mmengine.IterBasedTrainLoop', IterBasedTrainLoop), 'Iter'),
}


def for_training(cfg: Config, amp: bool = False, auto_scale_lr: bool = False) -> Config:
    """With mixed precision and a learning rate that follows the batch size, if asked for.

    Raises:
        RunError: If the config cannot be trained, or not so.
    """
    cfg = copy.deepcopy(cfg)
    for part in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(part):
            raise RunError(f'the config has no {part}, so nothing can be trained: start from one of configs/')
    if amp:
        if cfg.optim_wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise RunError(f'--amp works with an OptimWrapper, but the config has {cfg.optim_wrapper.type}')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise RunError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config: the batch '
                'size that its learning rate is meant for'
            )
        cfg.auto_scale_lr.enable = True
    return cfg


def reproducible(cfg: Config) -> Config:
    """With randomness that follows from seed and progress: the hook and the loops of :mod:`mmdat.hooks`."""
    cfg = copy.deepcopy(cfg)
    cfg.setdefault('default_hooks', ConfigDict()).setdefault('seed', dict(type='mmdat.SeedHook'))
    loop = cfg.train_cfg
    kind = 'Epoch' if loop.get('by_epoch', True) else 'Iter'
    if 'type' in loop:
        kind = _LOOPS.get(loop.type)
    if kind:
        loop.pop('by_epoch', None)
        loop.type = f'mmdat.{kind}BasedTrainLoop'
    return cfg


def with_checks(cfg: Config) -> Config:
    """With the hooks that count what a run will learn from, and that end it when nothing can be learnt any more."""
    cfg = copy.deepcopy(cfg)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('data_check', dict(type='mmdat.DataCheckHook'))
    hooks.setdefault('finite_weights', dict(type='mmdat.FiniteWeightsHook'))
    return cfg


def for_testing(
    cfg: Config, checkpoint: str, out: Optional[str] = None, show_dir: Optional[str] = None, tta: bool = False
) -> Config:
    """With the weights, with files for predictions and pictures, and with test-time augmentation, if asked for.

    Raises:
        RunError: If the config cannot be tested, or not so.
    """
    cfg = copy.deepcopy(cfg)
    for part in ('test_dataloader', 'test_cfg', 'test_evaluator'):
        if cfg.get(part) is None:
            raise RunError(f'the config has no {part}, so nothing can be tested: start from one of configs/')
    cfg.load_from, cfg.resume = checkpoint, False
    cfg.pop('runner_type', None)  # of sharded training, which leaves whole checkpoints
    if out:
        _save_predictions(cfg, out)
    if show_dir:
        _save_pictures(cfg, os.path.abspath(show_dir))
    if tta:
        _augment_test(cfg)
    return cfg


def on_cpu_processes(cfg: Config) -> Config:
    """What MMEngine does for GPUs only: processes that talk through gloo, a model wrapped without device."""
    if cfg.launcher != 'pytorch':
        raise RunError(
            f'--launcher {cfg.launcher} needs GPUs, and torch sees none: use --launcher pytorch '
            f'(tools/dist_train.sh) on a CPU'
        )
    cfg = copy.deepcopy(cfg)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if cfg.get('strategy', {}).get('type') == 'FSDPStrategy':
        cfg.strategy.model_wrapper.device_id = 'cpu'
    synchronised = [node for node in dicts(cfg.model) if node.get('type') in _SYNC_BN]
    for node in synchronised:
        node['type'] = 'BN'
    if synchronised:
        print_log('SyncBN works on GPUs only: BN takes its place, with statistics per process.', logger='current')
    return cfg


def with_names_of_its_own(cfg: Config) -> Config:
    """So that a second run in one process does not write where the first did.

    MMEngine keeps logs and visualizers by name.
    """
    cfg = copy.deepcopy(cfg)
    number = next(_RUNS)
    if number > 1:
        name = cfg.get('experiment_name') or (Path(cfg.filename).stem if cfg.filename else 'run')
        cfg.experiment_name = f'{name}_{number}'
    visualizer = cfg.get('visualizer')
    if visualizer and visualizer.get('name') and Visualizer.check_instance_created(visualizer.name):
        visualizer.name = f'{visualizer.name}_{number}'
    return cfg


def _save_predictions(cfg: Config, out: str) -> None:
    if not out.endswith(('.pkl', '.pickle')):
        raise RunError(f'--out must name a .pkl file, got {out}')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    # mmdet's own packs masks.
    dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]


def _save_pictures(cfg: Config, directory: str) -> None:
    """Switch on the toolbox's own pictures of predictions."""
    if os.path.isfile(directory):
        raise RunError(f'--show-dir must be a directory, but {directory} is a file')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        # The hook joins this with the work directory for every image: it must be absolute.
        hooks.visualization = dict(type='DetVisualizationHook', draw=True, test_out_dir=directory)
    elif scope == 'mmseg':
        hooks.visualization = dict(type='SegVisualizationHook', draw=True, interval=1)  # mmseg 1.2 heeds it in tests
        cfg.visualizer = dict(
            type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], save_dir=directory
        )
    elif scope == 'mmpretrain':
        hooks.visualization = dict(type='VisualizationHook', enable=True, interval=1, out_dir=directory)
    else:
        raise RunError(f'--show-dir works with default_scope mmdet, mmseg and mmpretrain, but the config has {scope}')


def _augment_test(cfg: Config) -> None:
    for name in ('tta_model', 'tta_pipeline'):
        if name not in cfg:
            raise RunError(f'--tta needs {name} in the config, which has none; see configs/_base_/datasets/ade20k.py')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in innermost_datasets(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.tta_pipeline
