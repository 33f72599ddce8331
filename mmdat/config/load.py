"""From a config file, an override and options to the config that a Runner gets."""

import difflib
import inspect
import os
import re
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

from mmdat.errors import RunError

from .own_data import complete_config
from .walk import dicts

# What MMEngine's runners and this module look for at the top level of a config.
_TOP_LEVEL = {
    *inspect.signature(Runner.__init__).parameters,
    *inspect.signature(FlexibleRunner.__init__).parameters,
    *('runner_type', 'compile', 'find_unused_parameters', 'tta_model', 'tta_pipeline'),
}


def load_config(
    path: str,
    override: Optional[str] = None,
    options: Optional[dict[str, Any]] = None,
    data: Optional[str] = None,
    work_dir: Optional[str] = None,
    launcher: str = 'none',
    val_fraction: Optional[float] = None,
) -> Config:
    """Read a config, as a Runner gets it.

    Args:
        path: The config file.
        override: A config file that is merged over it; ``num_classes`` at its top level replaces every ``num_classes``
            of the model.
        options: Entries to change, such as ``{'train_dataloader.batch_size': 4}``.
        data: The directory of the data, where the override has ``classes_from``.
        work_dir: Where the run writes; by default ``work_dirs/`` with the names of config and override.
        launcher: What starts the processes: none, pytorch, slurm or mpi.
        val_fraction: The part of the training data that is held back for validation, where the override has
            ``classes_from``.

    Raises:
        RunError: If a file does not exist.
    """
    cfg = _read(path)
    if not isinstance(cfg.get('model'), dict):
        raise RunError(f'the config {path} has no model=dict(...): start from one of configs/')
    name = Path(path).stem
    if override:
        _merge(cfg, _read(override))
        name += '-' + Path(override).stem
    if options:
        _merge_options(cfg, options)
    for key in ('work_dir', 'load_from'):
        if not isinstance(cfg.get(key) or '', str):
            raise RunError(
                f'{key} must be the path of a {"file" if key == "load_from" else "directory"}, got {cfg[key]}'
            )
    for option, value in (('--data', data), ('--val-fraction', val_fraction)):
        if value is not None and not cfg.get('classes_from'):
            raise RunError(
                f'{option} {value} needs --override with the layout of your data, one of configs/own_data, such as '
                f'--override configs/own_data/coco_folder.py'
            )
    if val_fraction is not None:
        cfg.val_fraction = val_fraction
    if work_dir or not cfg.get('work_dir'):
        cfg.work_dir = work_dir or os.path.join('work_dirs', name)
    if cfg.get('classes_from'):
        cfg.data_root = data or str(cfg.data_root)  # MMEngine makes a number of data_root=2024
        _set_num_classes(cfg, len(complete_config(cfg, cfg.work_dir)))
    cfg.launcher = launcher
    return cfg


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
        raise RunError(f'the config {path} cannot be read ({_reason(error)}): correct it') from error
    return cfg


def _reason(error: Exception) -> str:
    text = str(error.args[0] if error.args else error)
    inherit = re.match(r"(\w+)=.* cannot inherit from base because .* is of type <class '(\w+)'>", text, re.DOTALL)
    if inherit:
        key, kind = inherit.groups()
        return f'{key} is a dict here and a {kind} in what it changes: put _delete_=True into the dict'
    return f'{type(error).__name__}: {text.split(chr(10))[0] or "no reason given"}'


def _merge_options(cfg: Config, options: dict[str, Any]) -> None:
    for key in options:
        first = key.split('.')[0]
        if first not in cfg and first not in _TOP_LEVEL:
            near = difflib.get_close_matches(first, [*cfg, *_TOP_LEVEL], n=1)
            hint = f': did you mean {near[0]}?' if near else ': correct its name'
            raise RunError(f'--cfg-options {key} changes nothing, as the config has no {first}{hint}')
        _check_kind(cfg, key, options[key])
    try:
        cfg.merge_from_dict(options)
    except Exception as error:  # MMEngine raises many kinds
        raise RunError(f'--cfg-options do not fit the config: {_reason(error)}') from error


def _check_kind(cfg: Config, key: str, value: Any) -> None:
    """Refuse a value where the config has a dict, or a text where it has a number."""
    old: Any = cfg
    for part in key.split('.'):
        old = old.get(part) if isinstance(old, (dict, Config)) else None
    # An architecture may be a name or a dict, a map of labels also a text or a list.
    named = (key.endswith('.arch') and isinstance(value, str)) or key == 'label_map'
    if isinstance(old, dict) and not isinstance(value, (dict, type(None))) and not named:
        raise RunError(
            f'--cfg-options {key}={value} puts a {type(value).__name__} in the place of a dict: change one of its '
            f'entries, such as {key}.{next(iter(old), "type")}'
        )
    if isinstance(old, (int, float)) and isinstance(value, str) and value != 'dynamic':
        raise RunError(f'--cfg-options {key}={value} must be a number, such as {old}')


def _merge(cfg: Config, override: Config) -> None:
    options = override.to_dict()
    num_classes = options.pop('num_classes', None)
    try:
        cfg.merge_from_dict(options)
    except Exception as error:  # MMEngine raises many kinds
        raise RunError(f'the override {override.filename} does not fit the config: {_reason(error)}') from error
    if num_classes is not None:
        _set_num_classes(cfg, num_classes)


def _set_num_classes(cfg: Config, num_classes: int) -> None:
    # Heads differ in where they keep it, Cascade R-CNN has one per stage, and Mixup needs it too.
    for node in dicts([cfg.model, cfg.get('data_preprocessor')]):
        node.update({key: num_classes for key in ('num_classes', 'num_things_classes') if key in node})
    # Mask2Former weighs each class, and last "no object"; the loss also knows of stuff, which has its own number.
    for head in (cfg.model.get('panoptic_head'), cfg.model.get('decode_head')):
        weights = head.get('loss_cls', {}).get('class_weight') if isinstance(head, dict) else None
        if weights:
            stuff = head.get('num_stuff_classes', 0)
            head.loss_cls.class_weight = [weights[0]] * (num_classes + stuff) + [weights[-1]]
