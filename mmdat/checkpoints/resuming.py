"""Going on with a run from its checkpoints."""

import copy
import os
from pathlib import Path
from typing import Any, Callable, Union

from mmengine.config import Config

from mmdat.errors import CheckpointError, RunError

from .schemes import is_remote, read_checkpoint

Reader = Callable[..., dict[str, Any]]
_PARTS = ('meta', 'state_dict', 'optimizer', 'message_hub')


def resumed(cfg: Config, resume: str, read: Reader = read_checkpoint) -> tuple[Config, list[str]]:
    """A config that goes on from a checkpoint, once that is seen to be whole: its ``load_from``, ``resume`` and seed.

    Args:
        cfg: The whole config.
        resume: The checkpoint, or ``'auto'`` for the one that ``last_checkpoint`` in the work directory names. If that
            is missing or damaged, the newest of the others that is whole. Without any, training starts from scratch.
        read: What reads a checkpoint.

    Returns:
        The config, and what the log of the run should say about it.

    Raises:
        CheckpointError: If the checkpoint cannot be resumed.
        RunError: If there are checkpoints in the work directory, but none is whole.
    """
    cfg = copy.deepcopy(cfg)
    cfg.resume = True
    if resume != 'auto':
        if not is_remote(resume):
            _keep_seed(cfg, load_run(resume, read))
        cfg.load_from = resume
        return cfg, []
    faults = []
    for path in _candidates(Path(cfg.work_dir)):
        try:
            checkpoint = load_run(path, read)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        _keep_seed(cfg, checkpoint)
        cfg.load_from = str(path)
        return cfg, [f'{fault}; training goes on from {path} in its place.' for fault in faults]
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


def _candidates(work_dir: Path) -> list[Path]:
    """The checkpoint that ``last_checkpoint`` names, then the others of the run, newest first."""
    paths = sorted(work_dir.glob('*_*.pth'), key=lambda path: path.stat().st_mtime, reverse=True)
    paths = [path for path in paths if path.name.startswith(('epoch_', 'iter_'))]
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file():
        return paths
    named = Path(pointer.read_text().strip() or 'an empty file')
    moved = work_dir / named.name
    named = moved if moved.is_file() and not named.is_file() else named
    return [named, *(path for path in paths if path.absolute() != named.absolute())]


def _keep_seed(cfg: Config, checkpoint: dict[str, Any]) -> None:
    # MMEngine takes over the seed of a checkpoint after the order of the images is made from another.
    if (cfg.get('randomness') or {}).get('seed') is None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=checkpoint['meta'].get('seed'))
