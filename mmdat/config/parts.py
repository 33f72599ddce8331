"""Checks that the parts of a config fit each other: data and model, backbone and what reads its maps, launcher."""

import inspect
import math
import os
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from mmdat.errors import RunError
from mmdat.models import DAT
from mmdat.models.arch import NUM_STAGES, get_arch

from .walk import dicts, innermost_datasets

# The last transform of a pipeline, and the toolbox it packs for.
_PACKS = {'PackDetInputs': 'mmdet', 'PackSegInputs': 'mmseg', 'PackInputs': 'mmpretrain'}
# What a launcher sets in the environment, and what starts it.
_LAUNCHERS = {
    'pytorch': ('RANK', 'torchrun, as tools/dist_train.sh does'),
    'slurm': ('SLURM_PROCID', 'srun, as tools/slurm_train.sh does'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'mpirun'),
}


def check_launcher(cfg: Config) -> None:
    """Check that a run in several processes was started as such.

    Raises:
        RunError: If not.
    """
    variable, program = _LAUNCHERS.get(cfg.get('launcher', 'none'), (None, None))
    if variable and variable not in os.environ:
        raise RunError(
            f'--launcher {cfg.launcher} is for processes that are started by {program}: start them so, or leave '
            f'--launcher out'
        )


def check_optimizer(cfg: Config) -> None:
    """Check that there is such an optimizer, and that its learning rate is a finite number.

    Raises:
        RunError: If not.
    """
    for node in dicts(cfg.optim_wrapper):
        rate = node.get('lr')
        if isinstance(rate, float) and not math.isfinite(rate):
            raise RunError(f'the learning rate of the optimizer must be a finite number, got {rate}')
        name = (node.get('optimizer') or {}).get('type')
        if isinstance(name, str) and OPTIMIZERS.get(name) is None:
            raise RunError(f'the config cannot be used, as {name} is not in the optimizer registry: correct the type')


def check_task(cfg: Config, part: str) -> None:
    """Check that the data are prepared for the model's toolbox.

    Args:
        cfg: The whole config.
        part: train, val or test.

    Raises:
        RunError: If not, as with the override of another task.
    """
    for dataset in innermost_datasets(cfg[f'{part}_dataloader'].get('dataset')):
        if dataset.get('pipeline') == []:
            raise RunError(f'the pipeline of {part}_dataloader.dataset is empty: it must load images and pack them')
        for step in dataset.get('pipeline') or []:
            task = _PACKS.get(step.get('type') if isinstance(step, dict) else None)
            if task and cfg.get('default_scope') in _PACKS.values() and task != cfg.default_scope:
                raise RunError(
                    f'{part}_dataloader prepares images for {task}, but the config is for {cfg.default_scope}: choose '
                    f'the --override (or the pipeline) of the same task'
                )


def check_arguments(cfg: Config) -> None:
    """Check that each DAT of the model gets no arguments of another backbone.

    Raises:
        RunError: If one does, as where a config changes the backbone of its base but keeps that one's dict.
    """
    known = {'type', '_scope_', *inspect.signature(DAT).parameters}
    for node in dicts(cfg.model):
        foreign = sorted(set(node) - known) if _is_dat(node) else []
        if foreign:
            raise RunError(
                f'DAT takes no {", ".join(foreign)}: put _delete_=True into the dict of the backbone if they come from '
                f'a base of the config, else remove them'
            )


def check_channels(cfg: Config) -> None:
    """Check that means and deviations of images are as many as channels, and the deviations numbers to divide by.

    Raises:
        RunError: If not.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    channels = backbone.get('in_channels', 3) if _is_dat(backbone) else None
    for node in (cfg.get('data_preprocessor'), model.get('data_preprocessor')):
        mean, std = [(node or {}).get(key) for key in ('mean', 'std')]
        if not (isinstance(mean, (list, tuple)) and isinstance(std, (list, tuple))):
            continue
        if len(mean) != len(std) or (channels and len(mean) not in (1, channels)):
            raise RunError(
                f'data_preprocessor has {len(mean)} values of mean and {len(std)} of std, but the backbone takes '
                f'images of {channels} channels: set as many, and model.backbone.in_channels'
                if channels
                else f'data_preprocessor has {len(mean)} values of mean and {len(std)} of std: set as many of both'
            )
        if not all(std):
            raise RunError(f'data_preprocessor.std must have no 0, which images are divided by, got {list(std)}')


def check_maps(cfg: Config) -> None:
    """Check that neck and heads read the maps that the backbone returns, and with several processes, all of them.

    Raises:
        RunError: If channels differ, or if a map is read by nothing, which stops distributed training.
    """
    model = next((node for node in dicts(cfg.model) if _is_dat(node.get('backbone'))), None)
    if model is None:
        return
    backbone = model['backbone']
    try:
        stages = tuple(backbone.get('out_indices', range(NUM_STAGES)))
        channels = [get_arch(backbone.get('arch', 'tiny')).dims[stage] for stage in stages]
    except (ValueError, IndexError, TypeError):  # which the backbone itself explains
        return
    read = set()
    for name, reader in _readers(model):
        places = _places(reader, len(stages))
        if not places:
            continue
        found, expected = reader['in_channels'], [channels[place] for place in places]
        if isinstance(found, (list, tuple)):
            # A neck gets all maps, and leaves out those below start_level.
            found, expected = list(found), channels if name == 'neck' else expected
        else:
            expected = expected[-1]
        if found != expected:
            raise RunError(
                f'model.{name}.in_channels is {found}, but the maps of the backbone (arch and out_indices) have '
                f'{expected} channels: set model.{name}.in_channels={expected}'
            )
        read.update(places)
    unread = sorted(set(range(len(stages))) - read) if read else []
    ends_early = bool(unread) and max(unread) > max(read)
    if cfg.get('launcher', 'none') == 'none' or cfg.get('find_unused_parameters') or not unread:
        return
    if backbone.get('out_norm', True) or ends_early:
        left = tuple(stages[place] for place in sorted(read))
        raise RunError(
            f'with several processes every weight must take part in the loss, but nothing reads the maps of stages '
            f'{[stages[place] for place in unread]} (start_level of the neck, in_index of heads): set '
            f'model.backbone.out_indices={left}, in_channels to match and start_level=0, or find_unused_parameters=True'
        )


def _is_dat(node: Any) -> bool:
    return isinstance(node, dict) and node.get('type') in ('mmdat.DAT', DAT)


def _readers(model: dict) -> list[tuple[str, dict]]:
    """What gets the backbone's maps: a neck with channels of its own, or the heads."""
    neck = model.get('neck')
    if isinstance(neck, dict) and 'in_channels' in neck:
        return [('neck', neck)]
    if neck and model.get('decode_head'):
        return []
    names = ('decode_head', 'auxiliary_head', 'panoptic_head', 'head')
    heads = [(name, one) for name in names for one in _as_list(model.get(name))]
    return [(name, head) for name, head in heads if isinstance(head, dict) and 'in_channels' in head]


def _places(reader: dict, count: int) -> list[int]:
    """Which of the maps a neck or head reads, by their places."""
    if 'start_level' in reader:
        end = reader.get('end_level', -1)
        return list(range(count))[reader['start_level'] : None if end == -1 else end + 1]
    default = list(range(count)) if isinstance(reader['in_channels'], (list, tuple)) else -1
    return [range(count)[place] for place in _as_list(reader.get('in_index', default)) if -count <= place < count]


def _as_list(value: Optional[Any]) -> list:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
