"""Checks before a run: everything it needs is there, or one sentence says what is missing.

Without them a wrong path shows up as a traceback from a data-loading worker, minutes after the start.
"""

import os
import tempfile
from typing import Any, Callable, Optional

import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.utils import digit_version

from mmdat.checkpoints.schemes import is_remote, read_checkpoint
from mmdat.errors import RunError
from mmdat.models.checkpoint import is_official, unwrap
from mmdat.weights import SCHEME

from .parts import check_channels, check_task
from .walk import dicts, innermost_datasets

# Part of a path, then what to do about it when it is missing.
_SOURCES = [
    ('shapes', 'make the demo data with python tools/make_shapes.py'),
    (
        'coco',
        'get COCO 2017 from https://cocodataset.org and put it there or change data_root, or try the config on '
        'the demo data: python tools/make_shapes.py, then --override configs/demo/on_shapes_coco.py',
    ),
    (
        'ade',
        'get ADE20K (ADEChallengeData2016) from https://groups.csail.mit.edu/vision/datasets/ADE20K and put it '
        'there or change data_root, or try the config on the demo data: python tools/make_shapes.py, then --override '
        'configs/demo/on_shapes_ade20k.py',
    ),
    (
        'imagenet',
        'get ImageNet-1K from https://image-net.org and put it there or change data_root, or try the config '
        'on the demo data: python tools/make_shapes.py, then --override configs/demo/on_shapes_in1k.py',
    ),
]


def check_run(cfg: Config, training: bool, read: Callable[[str], dict[str, Any]] = read_checkpoint) -> None:
    """Check that the files and directories of a run exist.

    Looked at are the datasets and evaluators that the run uses, ``load_from``, and, for training,
    ``init_cfg=dict(type='Pretrained')`` anywhere in the model. Addresses (with
    ``://``) and data behind ``backend_args`` are left to MMEngine.

    Args:
        cfg: The whole config, as the Runner gets it.
        training: Check what training with validation needs, else what testing needs.
        read: What reads a checkpoint.

    Raises:
        RunError: If something is missing; says what, where it was looked for, and what to do.
    """
    _check_numbers(cfg)
    check_channels(cfg)
    for part in _parts(cfg, training):
        dataloader = cfg.get(f'{part}_dataloader')
        if dataloader:
            _check_loading(dataloader, f'{part}_dataloader')
            check_task(cfg, part)
            for dataset in innermost_datasets(dataloader['dataset']):
                _check_dataset(dataset, f'{part}_dataloader')
                _check_num_classes(cfg, dataset, f'{part}_dataloader')
        for metric in dicts(cfg.get(f'{part}_evaluator')):
            _check_path(metric.get('ann_file'), None, f'{part}_evaluator needs the annotation file')
            _check_topk(metric, dataloader, f'{part}_evaluator')
    if training:
        for init_cfg in dicts(cfg.model):
            if 'checkpoint' in (init_cfg.get('init_cfg') or {}) and 'type' not in init_cfg['init_cfg']:
                raise RunError('init_cfg of the model has a checkpoint, but no type: set its type to Pretrained')
            if init_cfg.get('type') == 'Pretrained' and isinstance(init_cfg.get('checkpoint'), str):
                _check_checkpoint(init_cfg['checkpoint'], 'init_cfg of the model needs the checkpoint', read)
    if cfg.get('load_from'):
        _check_checkpoint(cfg.load_from, 'the run needs the checkpoint', read)
        if not cfg.get('resume'):
            _check_whole_model(cfg.load_from, read)


def check_amp(cfg: Config) -> None:
    """Check that mixed precision, if asked for, is possible here.

    Raises:
        RunError: On a machine without a GPU.
    """
    if cfg.optim_wrapper.type == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise RunError(
            'mixed precision (--amp, or AmpOptimWrapper in the config) needs a GPU, and torch sees none: '
            'leave it out to train in full precision'
        )


def check_work_dir(path: str) -> None:
    """Make a work directory.

    Raises:
        RunError: If it cannot be made, or not be written.
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RunError(
            f'the work directory {os.path.abspath(path)} cannot be written ({error.strerror}): name another with '
            f'--work-dir'
        ) from error


def check_fit(model: nn.Module, weights: dict[str, Any], path: str) -> None:
    """Check that a checkpoint has the heads of a model; its backbone has checks of its own.

    Raises:
        RunError: If the heads are of another model, which MMEngine loads with no more than a warning.
    """
    heads = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    for key, value in heads.items():
        if key in weights and weights[key].shape != value.shape:
            raise RunError(
                f'{path} does not fit the config: {key} is {tuple(weights[key].shape)} in the file and '
                f'{tuple(value.shape)} in the model; take the config that it was trained with, which '
                f'training leaves in its work directory'
            )
    if heads and not any(key in weights for key in heads):
        raise RunError(
            f'{path} does not fit the config: it has none of the weights of the heads, such as {next(iter(heads))}'
        )


def check_start(model: nn.Module, weights: dict[str, Any], path: str) -> None:
    """Check that a checkpoint has anything of a model that is to be trained from it; new heads are usual.

    Raises:
        RunError: If it has nothing, which MMEngine takes for no more than a warning.
    """
    own = model.state_dict()
    if not any(key in own for key in weights):
        raise RunError(
            f'{path} has no weights of this model; it has, for example, {next(iter(weights), "nothing")}: choose a '
            f'checkpoint of this model, or load a backbone with model.backbone.init_cfg'
        )


def check_compile(cfg: Config) -> None:
    """Check that torch.compile can be trusted here.

    Raises:
        RunError: With PyTorch before 2.4, or another runner than MMEngine's usual one.
    """
    if cfg.get('runner_type', 'Runner') != 'Runner':
        raise RunError(
            f'--compile works with the runner_type Runner, but the config has {cfg.runner_type}: leave it out'
        )
    if digit_version(torch.__version__) < digit_version('2.4'):
        raise RunError(
            f'--compile needs PyTorch 2.4 or newer, this is {torch.__version__}, whose torch.compile makes NaN of the '
            f'backbone: leave it out'
        )


def _parts(cfg: Config, training: bool) -> tuple[str, ...]:
    if not training:
        return ('test',)
    return ('train', 'val') if cfg.get('val_cfg') is not None else ('train',)


def _check_numbers(cfg: Config) -> None:
    interval, seed = (cfg.get('train_cfg') or {}).get('val_interval', 1), (cfg.get('randomness') or {}).get('seed')
    if isinstance(interval, int) and interval < 1:
        raise RunError(f'train_cfg.val_interval must be at least 1, got {interval}: for no validation set val_cfg=None')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise RunError(f'randomness.seed must be a whole number from 0 to 2**32 - 1, got {seed}')


def _check_topk(metric: dict, dataloader: Optional[dict], name: str) -> None:
    """Check that an accuracy among the best k is not asked for more than there are classes."""
    topk = metric.get('topk') or ()
    best = max([k for k in (topk if isinstance(topk, (list, tuple)) else [topk]) if isinstance(k, int)], default=0)
    for dataset in innermost_datasets((dataloader or {}).get('dataset')):
        classes = (dataset.get('metainfo') or {}).get('classes')
        if isinstance(classes, (list, tuple)) and best > len(classes):
            raise RunError(f'{name}.topk has {best}, but there are {len(classes)} classes: set {name}.topk=[1]')


def _check_loading(dataloader: dict, name: str) -> None:
    for key, least in (('batch_size', 1), ('num_workers', 0)):
        value = dataloader.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RunError(f'{name}.{key} must be a whole number from {least} on, got {value!r}')
    if dataloader.get('persistent_workers') and not dataloader.get('num_workers'):
        raise RunError(f'{name} has persistent_workers, but num_workers=0: set {name}.persistent_workers=False as well')


def _check_num_classes(cfg: Config, dataset: dict, name: str) -> None:
    """Check that some head has as many classes as a dataset that names its own."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    values = [node.get(key) for node in dicts(cfg.get('model')) for key in ('num_classes', 'num_things_classes')]
    numbers = {value for value in values if isinstance(value, int)}
    if isinstance(classes, (list, tuple)) and numbers and len(classes) not in numbers:
        raise RunError(
            f'the dataset of {name} has {len(classes)} classes, but the heads of the model have '
            f'num_classes={", ".join(map(str, sorted(numbers)))}: set num_classes of each to {len(classes)}'
        )


def _check_dataset(dataset: dict, name: str) -> None:
    """Check that the files of a dataset exist."""
    if dataset.get('backend_args'):
        return
    root = dataset.get('data_root')
    _check_path(root, None, f'{name} needs the directory')
    _check_path(dataset.get('ann_file'), root, f'{name} needs the annotation file')
    prefixes = dataset.get('data_prefix') or dataset.get('split')
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        _check_path(prefix, root, f'{name} needs the directory', filled=True)


def _check_path(path: Optional[str], root: Optional[str], needs: str, filled: bool = False) -> None:
    """Check that a path of a dataset exists; with ``filled``, that it is a directory with something in it."""
    if not isinstance(path, str) or not path:
        return
    path = os.path.expanduser(os.path.join(root or '', path))
    if '://' in path:
        return
    absolute = os.path.abspath(path)
    if not os.path.exists(absolute):
        fault = 'which does not exist'
    elif filled and not (os.path.isdir(absolute) and os.listdir(absolute)):
        fault = 'which is empty'
    else:
        return
    raise RunError(f'{needs} {absolute}, {fault}: {_remedy(path)}')


def _remedy(path: str) -> str:
    for word, remedy in _SOURCES:
        if word in path.lower():
            return remedy
    return 'put the data there or correct the path in the config (data_root, ann_file, data_prefix)'


def _check_checkpoint(path: str, needs: str, read: Callable[[str], dict[str, Any]]) -> None:
    if path.startswith(SCHEME):
        read(path)  # which downloads it now, and not after the data are loaded
    elif not is_remote(path) and not os.path.isfile(os.path.expanduser(path)):
        raise RunError(
            f'{needs} {os.path.abspath(os.path.expanduser(path))}, which does not exist: put the file '
            f'there or correct the path'
        )


def _check_whole_model(path: str, read: Callable[[str], dict[str, Any]]) -> None:
    """Refuse an official classification file for a whole model: MMEngine would load none of its keys."""
    if is_remote(path):
        return
    if is_official(unwrap(read(path))):
        raise RunError(
            f'{path} holds only a backbone in the official layout, not the whole model: load it into the '
            f'backbone with --cfg-options model.backbone.init_cfg.type=Pretrained '
            f'model.backbone.init_cfg.checkpoint={path}'
        )
