"""Files that are written whole or not at all, and checkpoints in such files."""

import copy
import os
from contextlib import suppress
from pathlib import Path
from typing import Union

from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from mmdat.errors import RunError

NAME = 'mmdat_whole_files'


@register_backend(NAME, force=True)
class WholeFileBackend(LocalBackend):
    """Writes files whole or not at all: the last version stays until the next is on the disk."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write a file.

        Raises:
            RunError: If it cannot be written, as the disk is full.
        """
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
            raise RunError(
                f'{filepath} cannot be written ({error.strerror}): free some space, and go on from the last whole '
                f'checkpoint with --resume'
            ) from error


def with_whole_checkpoints(cfg: Config) -> Config:
    """A config whose run has a whole checkpoint at any time after its first.

    Sharded training writes by functions that take no backend; there a run goes on from the newest file that is whole.
    """
    cfg = copy.deepcopy(cfg)
    hook = (cfg.get('default_hooks') or {}).get('checkpoint')
    if not hook:
        return cfg
    if not hook.get('backend_args') and '://' not in str(hook.get('out_dir', '')):
        hook.backend_args = dict(backend=NAME)
    if hook.get('max_keep_ckpts') == 1:
        hook.max_keep_ckpts = 2
        print_log('MMEngine removes old checkpoints before it writes the next: two are kept, not one.', 'current')
    return cfg
