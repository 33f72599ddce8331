"""One run at a time in a work directory."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from mmdat.errors import RunError

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

NAME = 'running.lock'
_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


@contextmanager
def only_run(work_dir: str) -> Iterator[None]:
    """While it lasts, no other training may use a work directory; it ends with the process at the latest.

    Raises:
        RunError: If another has it; names its process and host. A lock whose process is gone does not count.
    """
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), '0')
    path = Path(work_dir, NAME)
    if fcntl is None or rank != '0':  # one lock for all processes of a run
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _lock(path)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()
            file.close()


def _lock(path: Path) -> Any:
    """The locked file; None where the file system has no locks."""
    for _ in range(2):
        file = path.open('a+')
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            if _is_gone(holder):  # its data-loading workers, which end a little later, still hold it
                path.unlink(missing_ok=True)
                continue
            raise RunError(
                f'{path.parent.absolute()} is the work directory of a run of process {holder.get("process")} on '
                f'{holder.get("host")}: wait for its end, or name another with --work-dir'
            ) from None
        except OSError:
            file.close()
            return None
        file.truncate(0)
        file.write(json.dumps(dict(process=os.getpid(), host=socket.gethostname())))
        file.flush()
        return file
    raise RunError(f'{path} cannot be locked: name another work directory with --work-dir')


def _holder(file: TextIO) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:  # just being written
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder.get('host') != socket.gethostname() or not isinstance(holder.get('process'), int):
        return False
    try:
        os.kill(holder['process'], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
