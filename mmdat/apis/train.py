"""What tools/train.py and tools/test.py do: from a config and options to a run of MMEngine's Runner."""

import os
from typing import Any, Optional, Union

import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from mmdat.checkpoints.reading import load_weights
from mmdat.checkpoints.resuming import keep_a_whole_checkpoint, prepare_resume
from mmdat.checkpoints.without_code import reading_without_code
from mmdat.config.checks import check_amp, check_compile, check_fit, check_run, check_start, check_work_dir
from mmdat.config.sharding import check_sharding
from mmdat.config.walk import replace
from mmdat.errors import RunError
from mmdat.models.checkpoint import unwrap

SYNC_BN = ('SyncBN', 'MMSyncBN')


@reading_without_code()
def train(
    cfg: Config,
    amp: bool = False,
    resume: Optional[str] = None,
    auto_scale_lr: bool = False,
    compile: bool = False,
) -> None:
    """Train and evaluate.

    Args:
        cfg: The whole config.
        amp: Train in mixed precision.
        resume: A checkpoint to go on from, or ``'auto'`` for the latest in the work directory.
        auto_scale_lr: Scale the learning rate to the batch size, by ``auto_scale_lr.base_batch_size``.
        compile: Compile backbone and neck.

    Raises:
        RunError: If the run cannot be made, before the model is built.
    """
    for part in ('train_dataloader', 'train_cfg', 'optim_wrapper'):
        if not cfg.get(part):
            raise RunError(f'the config has no {part}, so nothing can be trained: start from one of configs/')
    if amp:
        if cfg.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
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
    if compile:
        check_compile(cfg)
    check_amp(cfg)
    check_sharding(cfg)
    if not resume and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    notes = prepare_resume(cfg, resume) if resume else []
    check_run(cfg, training=True)
    keep_a_whole_checkpoint(cfg)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('seed', dict(type='mmdat.SeedHook'))
    hooks.setdefault('data_check', dict(type='mmdat.DataCheckHook'))
    runner = _build(cfg, compile)
    start = cfg.get('load_from')
    # A FlexibleRunner builds its model later.
    if start and not cfg.get('resume') and '://' not in start and isinstance(runner.model, torch.nn.Module):
        check_start(runner.model, unwrap(load_weights(start)), start)
    for note in notes:
        runner.logger.warning(note)
    runner.train()


@reading_without_code()
def evaluate(
    cfg: Config,
    checkpoint: str,
    out: Optional[str] = None,
    show_dir: Optional[str] = None,
    tta: bool = False,
    compile: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint.

    Args:
        cfg: The whole config.
        checkpoint: File or address of the weights.
        out: A .pkl file for the predictions.
        show_dir: A directory for pictures of the predictions.
        tta: Test-time augmentation, by ``tta_model`` and ``tta_pipeline`` of the config.
        compile: Compile backbone and neck.

    Returns:
        The figures of the evaluators.

    Raises:
        RunError: If the run cannot be made, before the model is built.
    """
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
    if compile:
        check_compile(cfg)
    check_run(cfg, training=False)
    cfg.setdefault('default_hooks', ConfigDict()).setdefault('data_check', dict(type='mmdat.DataCheckHook'))
    runner = _build(cfg, compile)
    if '://' not in checkpoint:
        model = runner.model.module if is_model_wrapper(runner.model) or tta else runner.model
        check_fit(model, unwrap(load_weights(checkpoint)), checkpoint)
    return runner.test()


def _build(cfg: Config, compile: bool) -> Union[Runner, FlexibleRunner]:
    check_work_dir(cfg.work_dir)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        _distribute_on_cpu(cfg)
    runner = RUNNERS.build(cfg)  # MMEngine's Runner, or the config's runner_type
    if compile:
        # Not MMEngine's cfg.compile: it takes the optimizer's step too, where torch 2.14 fails, and nothing in testing.
        model = runner.model
        while hasattr(model, 'module'):  # distributed, or test-time augmentation
            model = model.module
        model.extract_feat = torch.compile(model.extract_feat)
    return runner


def _distribute_on_cpu(cfg: Config) -> None:
    """What MMEngine does for GPUs only: processes that talk through gloo, a model wrapped without device."""
    if cfg.launcher != 'pytorch':
        raise RunError(
            f'--launcher {cfg.launcher} needs GPUs, and torch sees none: use --launcher pytorch '
            f'(tools/dist_train.sh) on a CPU'
        )
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if cfg.get('strategy', {}).get('type') == 'FSDPStrategy':
        cfg.strategy.model_wrapper.device_id = 'cpu'
    changed: list[str] = []

    def to_bn(name: Any) -> Any:
        if name not in SYNC_BN:
            return name
        changed.append(name)
        return 'BN'

    replace(cfg.model, 'type', to_bn)
    if changed:
        print_log('SyncBN works on GPUs only: BN takes its place, with statistics per process.', logger='current')


def _save_predictions(cfg: Config, out: str) -> None:
    if not out.endswith(('.pkl', '.pickle')):
        raise RunError(f'--out must name a .pkl file, got {out}')
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    # mmdet's own packs masks.
    dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
    cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=out)]


def _save_pictures(cfg: Config, directory: str) -> None:
    """Switch on the toolbox's own pictures of predictions."""
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
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
