"""What tools/train.py and tools/test.py do: from a config and options to a run of MMEngine's Runner."""

import argparse
import difflib
import inspect
import os
import sys
from pathlib import Path
from typing import Any, Callable, Optional, Union

import torch.distributed
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from mmdat.models.checkpoint import CheckpointError, unwrap

from .explain import explain
from .own_data import complete_config
from .preflight import RunError, check_amp, check_compile, check_fit, check_run, check_start, check_work_dir
from .resuming import keep_a_whole_checkpoint, prepare_resume
from .safe_reading import reading_without_code
from .sharding import check_sharding
from .weights import load_weights

SYNC_BN = ('SyncBN', 'MMSyncBN')
# What MMEngine's runners and this module look for at the top level of a config.
_TOP_LEVEL = {
    *inspect.signature(Runner.__init__).parameters,
    *inspect.signature(FlexibleRunner.__init__).parameters,
    *('runner_type', 'compile', 'find_unused_parameters', 'tta_model', 'tta_pipeline'),
}


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that training and testing share."""
    parser.add_argument('--work-dir', help='where logs, checkpoints and pictures go (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--override',
        metavar='FILE',
        help='a config file merged over CONFIG; num_classes at its top level replaces every num_classes of the model',
    )
    parser.add_argument(
        '--data', metavar='DIR', help='the directory of your data, for --override configs/own_data/… (its data_root)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        type=key_value,
        metavar='KEY=VALUE',
        help='entries of the config to change, such as train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone and neck with torch.compile (the first step takes minutes)',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def key_value(text: str) -> str:
    """The type of ``--cfg-options``: MMEngine's action takes for granted that there is a ``=``."""
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE, such as train_dataloader.batch_size=4')
    return text


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that a command line names, with its override, options, launcher and work directory.

    Raises:
        RunError: If a file does not exist.
    """
    cfg = _read(args.config)
    if not isinstance(cfg.get('model'), dict):
        raise RunError(f'the config {args.config} has no model=dict(...): start from one of configs/')
    name = Path(args.config).stem
    if args.override:
        _merge(cfg, _read(args.override))
        name += '-' + Path(args.override).stem
    if args.cfg_options:
        _merge_options(cfg, args.cfg_options)
    data = vars(args).get('data')
    if data and not cfg.get('classes_from'):
        raise RunError(
            f'--data {data} needs --override with the layout of your data, one of configs/own_data, such as '
            f'--override configs/own_data/coco_folder.py'
        )
    if cfg.get('classes_from'):
        cfg.data_root = data or str(cfg.data_root)  # MMEngine makes a number of data_root=2024
        _set_num_classes(cfg, len(complete_config(cfg)))
    cfg.launcher = args.launcher
    if args.work_dir or not cfg.get('work_dir'):
        cfg.work_dir = args.work_dir or os.path.join('work_dirs', name)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


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
    cfg.setdefault('default_hooks', ConfigDict()).setdefault('seed', dict(type='mmdat.SeedHook'))
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
    runner = _build(cfg, compile)
    if '://' not in checkpoint:
        model = runner.model.module if is_model_wrapper(runner.model) or tta else runner.model
        check_fit(model, unwrap(load_weights(checkpoint)), checkpoint)
    return runner.test()


def run(main: Callable[[], Any]) -> None:
    """Run a script's main function; a fault that the user can put right ends it with one sentence."""
    try:
        main()
    except Exception as error:
        sentence = str(error) if isinstance(error, (RunError, CheckpointError)) else explain(error)
        if sentence is None:
            raise
        if os.environ.get('RANK', '0') == '0':  # once, not from every process
            print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
        sys.exit(1)


def _read(path: str) -> Config:
    if '::' not in path and not os.path.isfile(path):
        raise RunError(
            f'there is no config file {os.path.abspath(path)}: correct the path; the configs of mmdat are '
            f'in configs/ and configs/demo/'
        )
    try:
        cfg = Config.fromfile(path)
    except FileNotFoundError as error:
        raise RunError(f'the config {path} names a base file that does not exist: {error}') from error
    except Exception as error:  # a config is a program, and may fail like any
        reason = str(error).split('\n')[0] or 'no reason given'
        raise RunError(f'the config {path} cannot be read ({type(error).__name__}: {reason}): correct it') from error
    return cfg


def _merge_options(cfg: Config, options: dict[str, Any]) -> None:
    for key in options:
        first = key.split('.')[0]
        if first not in cfg and first not in _TOP_LEVEL:
            near = difflib.get_close_matches(first, [*cfg, *_TOP_LEVEL], n=1)
            hint = f': did you mean {near[0]}?' if near else ': correct its name'
            raise RunError(f'--cfg-options {key} changes nothing, as the config has no {first}{hint}')
    try:
        cfg.merge_from_dict(options)
    except Exception as error:  # MMEngine raises many kinds
        raise RunError(f'--cfg-options do not fit the config: {error.args[0] if error.args else error}') from error


def _merge(cfg: Config, override: Config) -> None:
    override = override.to_dict()
    num_classes = override.pop('num_classes', None)
    cfg.merge_from_dict(override)
    if num_classes is not None:
        _set_num_classes(cfg, num_classes)


def _set_num_classes(cfg: Config, num_classes: int) -> None:
    # Heads differ in where they keep it, Cascade R-CNN has one per stage, and Mixup needs it too.
    for part in (cfg.model, cfg.get('data_preprocessor')):
        for key in ('num_classes', 'num_things_classes'):
            _replace(part, key, lambda old: num_classes)
    # Mask2Former weighs each class, and last "no object"; the loss also knows of stuff, which has its own number.
    for head in (cfg.model.get('panoptic_head'), cfg.model.get('decode_head')):
        weights = head.get('loss_cls', {}).get('class_weight') if isinstance(head, dict) else None
        if weights:
            stuff = head.get('num_stuff_classes', 0)
            head.loss_cls.class_weight = [weights[0]] * (num_classes + stuff) + [weights[-1]]


def _replace(node: Any, key: str, change: Callable[[Any], Any]) -> None:
    """Change each value of a key in a config, however deep."""
    if isinstance(node, dict):
        if key in node:
            node[key] = change(node[key])
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            _replace(child, key, change)


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

    _replace(cfg.model, 'type', to_bn)
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
