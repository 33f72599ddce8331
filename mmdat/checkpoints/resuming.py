"""Going on with a run from its checkpoints."""

import copy
import os
from pathlib import Path
from typing import Any, Callable, Union

from mmengine.config import Config

from mmdat.errors import CheckpointError, RunError

from .run_changes import changes
from .schemes import is_remote, read_checkpoint

Reader = Callable[..., dict[str, Any]]
_PARTS = ('meta', 'state_dict', 'optimizer', 'message_hub')


def resumed(cfg: Config, resume: str, read: Reader = read_checkpoint) -> tuple[Config, list[str]]:
    """A config that goes on from a checkpoint, once that is seen to be whole: its ``load_from``, ``resume`` and seed.

    Args:
        cfg: The whole config.
        resume: The checkpoint, or ``'auto'`` for the one that ``last_checkpoint`` in the work directory names. If that
            is missing or damaged, the last of the others that is whole. Without any, training starts from scratch.
        read: What reads a checkpoint.

    Returns:
        The config, and what the log of the run should say about it.

    Raises:
        CheckpointError: If the checkpoint cannot be resumed, or a run would not go on from it as if uninterrupted.
        RunError: If there are checkpoints in the work directory, but none is whole.
    """
    cfg = copy.deepcopy(cfg)
    cfg.resume = True
    if resume != 'auto':
        cfg.load_from = resume
        if is_remote(resume):
            return cfg, []
        checkpoint = load_run(resume, read)
        _check_place(cfg, checkpoint, resume)
        return cfg, _taken_over(cfg, checkpoint)
    faults = []
    for path in _candidates(cfg, read):
        try:
            checkpoint = load_run(path, read)
            _check_place(cfg, checkpoint, path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        cfg.load_from = str(path)
        notes = [f'{fault}; training goes on from {path} in its place.' for fault in faults]
        return cfg, notes + _taken_over(cfg, checkpoint)
    if faults:
        raise RunError(
            f'cannot resume, as {os.path.abspath(cfg.work_dir)} has no whole checkpoint ({"; ".join(faults)}): name '
            f'another with --resume PATH, or train from scratch without --resume'
        )
    cfg.load_from, cfg.resume = None, False
    return cfg, [f'There is no checkpoint to resume from in {cfg.work_dir}: training starts from scratch.']


def load_run(path: Union[str, Path], read: Reader = read_checkpoint) -> dict[str, Any]:
    """Read a checkpoint that holds all of a run.

    Raises:
        CheckpointError: If it is damaged or has only weights.
    """
    checkpoint = read(str(path), everything=True)
    missing = [part for part in _PARTS if part not in checkpoint]
    if missing:
        raise CheckpointError(
            f'{path} has no {missing[0]}, so no run can be resumed from it: start from its weights with load_from'
        )
    return checkpoint


def _candidates(cfg: Config, read: Reader) -> list[Path]:
    """The checkpoint that ``last_checkpoint`` names, then the others of the run, from the last iteration on.

    A copied work directory names the original's checkpoint: its own of that name comes first, and none of elsewhere is
    taken, unless the config writes them elsewhere (``out_dir`` of the checkpoint hook).
    """
    work_dir = Path(cfg.work_dir)
    paths = [path for kind in ('epoch', 'iter') for path in work_dir.glob(f'{kind}_*.pth')]
    if len({path.name.split('_')[0] for path in paths}) > 1:
        paths = sorted(paths, key=lambda path: _iteration(path, read), reverse=True)
    else:
        paths = sorted(paths, key=_number, reverse=True)
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return paths
    named = Path(pointer.read_text().strip() or 'an empty file')
    elsewhere = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    if not elsewhere or (work_dir / named.name).is_file():
        named = work_dir / named.name
    return [named, *(path for path in paths if path.absolute() != named.absolute())]


def _number(path: Path) -> int:
    digits = path.stem.split('_', 1)[1]
    return int(digits) if digits.isdecimal() else -1


def _iteration(path: Path, read: Reader) -> int:
    """The iteration of a checkpoint; -1 if it cannot be read."""
    try:
        return int(read(str(path))['meta']['iter'])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return -1


def _check_place(cfg: Config, checkpoint: dict[str, Any], path: Union[str, Path]) -> None:
    """Refuse a checkpoint of a place in the run from which it would not go on as if uninterrupted."""
    iteration, epoch = checkpoint['meta'].get('iter', 0), checkpoint['meta'].get('epoch', 0)
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if counts > 1 and iteration % counts:
        raise CheckpointError(
            f'{path} was written after {iteration} iterations, in the middle of {counts} whose gradients are summed '
            f'(accumulative_counts), and has no gradients: resume from one after a multiple of {counts}, and set '
            f'default_hooks.checkpoint.interval to such'
        )
    info = checkpoint['message_hub'].get('runtime_info') or {}
    epochs, iterations = info.get('max_epochs'), info.get('max_iters')
    if _by_epochs(cfg) and epochs and iterations and iteration != epoch * (iterations // epochs):
        raise CheckpointError(
            f'{path} was written after {iteration} iterations, within an epoch of {iterations // epochs}, which would '
            f'be trained on from its start again: resume from one at the end of an epoch, and set '
            f'default_hooks.checkpoint.by_epoch=True'
        )


def _by_epochs(cfg: Config) -> bool:
    loop = cfg.get('train_cfg') or {}
    return 'Epoch' in str(loop['type']) if 'type' in loop else bool(loop.get('by_epoch', True))


def _taken_over(cfg: Config, checkpoint: dict[str, Any]) -> list[str]:
    """Keep the seed of a run, and say what is not kept."""
    # MMEngine takes over the seed of a checkpoint after the order of the images is made from another.
    if (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=checkpoint['meta'].get('seed'))
    changed = changes(cfg, checkpoint)
    if not changed:
        return []
    return [f'The run goes on otherwise than it was begun (old -> new): {"; ".join(changed)}.']
