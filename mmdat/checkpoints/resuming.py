"""Going on with a run from its checkpoints, and writing them so that one is always whole."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Union

from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from mmdat.errors import CheckpointError, RunError

from .reading import load_weights

_PARTS = ('meta', 'state_dict', 'optimizer', 'message_hub')


def prepare_resume(cfg: Config, resume: str) -> list[str]:
    """Set a config's ``load_from``, ``resume`` and seed to go on from a checkpoint, once it is seen to be whole.

    Args:
        cfg: The whole config.
        resume: The checkpoint, or ``'auto'`` for the one that ``last_checkpoint`` in the work directory names. If that
            is missing or damaged, the newest of the others that is whole. Without any, training starts from scratch.

    Returns:
        What the log of the run should say about it.

    Raises:
        CheckpointError: If the checkpoint cannot be resumed.
        RunError: If there are checkpoints in the work directory, but none is whole.
    """
    cfg.resume = True
    if resume != 'auto':
        if '://' not in resume:
            _keep_seed(cfg, load_run(resume))
        cfg.load_from = resume
        return []
    cfg.load_from = None
    faults = []
    for path in _candidates(Path(cfg.work_dir)):
        try:
            checkpoint = load_run(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        _keep_seed(cfg, checkpoint)
        cfg.load_from = str(path)
        return [f'{fault}; training goes on from {path} in its place.' for fault in faults]
    if faults:
        raise RunError(
            f'cannot resume, as {os.path.abspath(cfg.work_dir)} has no whole checkpoint ({"; ".join(faults)}): name '
            f'another with --resume PATH, or train from scratch without --resume'
        )
    cfg.resume = False
    return [f'There is no checkpoint to resume from in {cfg.work_dir}: training starts from scratch.']


def load_run(path: Union[str, Path]) -> dict[str, Any]:
    """Read a checkpoint that holds all of a run.

    Raises:
        CheckpointError: If it is damaged or has only weights.
    """
    checkpoint = load_weights(path, everything=True)
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


class WholeFileBackend(LocalBackend):
    """Writes files whole or not at all: the last version stays until the next is on the disk."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        part = Path(f'{filepath}.part')
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open('wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, filepath)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise OSError(error.errno, error.strerror, str(filepath)) from error


def keep_a_whole_checkpoint(cfg: Config) -> None:
    """See to it that a run has a whole checkpoint at any time after its first."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if hook and hook.get('max_keep_ckpts') == 1:
        hook.max_keep_ckpts = 2
        print_log('MMEngine removes old checkpoints before it writes the next: two are kept, not one.', 'current')
