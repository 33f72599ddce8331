"""Bringing a published file to this machine: from a directory or mirror of the user's, or from its authors.

A file is downloaded beside its final place, looked through, and only then renamed; whatever goes wrong, nothing half
is left.
"""

import hashlib
import http.client
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Callable, Optional, TypeVar

import torch
from filelock import FileLock

from mmdat.errors import CheckpointError

from .table import Weights

#: The environment variable that names a directory of files, or the address of a mirror, to be asked first.
VARIABLE = 'MMDAT_WEIGHTS'
#: Seconds without a byte after which a server is given up.
TIMEOUT = 30.0

_BLOCK = 1 << 20

Content = TypeVar('Content')


class _Fault(Exception):
    """Why an address did not give the file; the message follows its address in a sentence."""


def fetch(weights: Weights, read: Callable[[Path], Content], timeout: Optional[float] = None) -> Content:
    """Read the file of some weights, which is downloaded on first use.

    A directory that the environment variable ``MMDAT_WEIGHTS`` names is looked through first, then the cache of
    :mod:`torch.hub`, ``checkpoints/`` in ``torch.hub.get_dir()``. Then the mirror is asked whose address
    ``MMDAT_WEIGHTS`` names, at last the authors' server. One process of a machine downloads; the others wait for it.
    The file's SHA-256 is noted beside it in ``FILE.sha256`` on first use.

    Args:
        weights: Which.
        read: Reads a local file. Its ``CheckpointError`` says that the file is not what the weights' name promises;
            a download is then deleted.
        timeout: Seconds without a byte after which a server is given up; :data:`TIMEOUT` by default.

    Returns:
        What ``read`` returned.

    Raises:
        CheckpointError: If there is no way to the file, or it is not the right one, or it has changed since its first
            use. One sentence that says where to get the file by hand, and where to put it.
    """
    path, mirror = _places(weights)
    if path.is_file():
        return _read_local(weights, path, read)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            if path.is_file():  # another process has downloaded it meanwhile
                return _read_local(weights, path, read)
            return _first_of(mirror, weights, path, read, TIMEOUT if timeout is None else timeout)
    except OSError as error:
        raise CheckpointError(
            f'{weights.name} cannot be kept in {path.parent} ({error.strerror or error}): free some space or change '
            f'its permissions, or choose another cache with the environment variable TORCH_HOME'
        ) from error


def _places(weights: Weights) -> tuple[Path, Optional[str]]:
    """Where the file is or will be, and the address of a mirror."""
    cached = Path(torch.hub.get_dir(), 'checkpoints', weights.file)
    given = os.environ.get(VARIABLE)
    if not given:
        return cached, None
    if given.startswith(('http://', 'https://')):
        return cached, f'{given.rstrip("/")}/{weights.file}'
    directory = Path(given).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f'{VARIABLE}={given} is neither a directory nor an address with http:// or https://: correct the '
            f'environment variable, or unset it'
        )
    own = directory / weights.file
    return (own if own.is_file() else cached), None


def _read_local(weights: Weights, path: Path, read: Callable[[Path], Content]) -> Content:
    _check_unchanged(path)
    try:
        content = read(path)
    except CheckpointError as error:
        raise CheckpointError(
            f'{path} is not {weights.name} ({error}): delete it, and get the file again from {weights.page}'
        ) from error
    _note_checksum(path)
    return content


def _first_of(
    mirror: Optional[str], weights: Weights, path: Path, read: Callable[[Path], Content], timeout: float
) -> Content:
    """Download from the first address that has the right file."""
    part = path.with_name(f'{path.name}.part')
    faults = []
    for url in filter(None, (mirror, weights.url)):
        try:
            _download(url, part, timeout)
            content = _read_download(part, read)
            os.replace(part, path)
            _note_checksum(path)
            return content
        except _Fault as fault:
            faults.append(f'{url} {fault}')
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
    raise CheckpointError(
        f'{weights.name} cannot be downloaded, as {", and ".join(faults)}: download the file in a browser from '
        f'{weights.page} or {weights.other_page} and save it as {path}, or name a directory that has {weights.file} in '
        f'the environment variable {VARIABLE}'
    )


def _download(url: str, target: Path, timeout: float) -> None:
    """Download a file, with progress on a terminal.

    Raises:
        _Fault: If the server cannot be reached, or does not send the whole file.
        OSError: If the file cannot be written.
    """
    print(f'downloading {url} to {target.parent}', file=sys.stderr)
    with target.open('wb') as file:
        for block in _receive(url, timeout):
            file.write(block)


def _receive(url: str, timeout: float) -> Iterator[bytes]:
    """What a server sends, a block at a time; whatever goes wrong here is the network's fault."""
    try:
        request = urllib.request.Request(url, headers={'User-Agent': 'mmdat'})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            length, done = int(response.headers.get('Content-Length') or 0), 0
            while block := response.read(_BLOCK):
                yield block
                done += len(block)
                _show(done, length)
    except urllib.error.HTTPError as error:
        raise _Fault(f'answers {error.code} {error.reason}') from error
    except urllib.error.URLError as error:
        raise _Fault(f'cannot be reached ({error.reason})') from error
    except socket.timeout as error:  # TimeoutError from Python 3.10 on
        raise _Fault(f'sent nothing for {timeout:g} s') from error
    except (OSError, http.client.HTTPException) as error:
        raise _Fault(f'broke the connection ({error or type(error).__name__})') from error
    if done < length:  # which urllib takes for the end of the file
        raise _Fault(f'broke off after {done:,} of {length:,} bytes')


def _show(done: int, length: int) -> None:
    if sys.stderr.isatty():
        of_all = f' of {length / 1e6:.0f}' if length else ''
        print(f'\r{done / 1e6:.0f}{of_all} MB', end='\n' if done == length else '', file=sys.stderr, flush=True)


def _read_download(part: Path, read: Callable[[Path], Content]) -> Content:
    try:
        return read(part)
    except CheckpointError as error:
        raise _Fault(f'sends another file ({error})') from error


# --- checksums ---


def _check_unchanged(path: Path) -> None:
    noted = _sidecar(path)
    if not noted.is_file():
        return
    before, now = noted.read_text().split(' ')[0], _sha256(path)
    if before != now:
        raise CheckpointError(
            f'{path} has changed since its first use (SHA-256 {now}, then {before}): restore the file, or delete '
            f'{noted} if the change is right'
        )


def _note_checksum(path: Path) -> None:
    """Write FILE.sha256 as sha256sum does, unless it is there; a directory may be for reading only."""
    noted = _sidecar(path)
    if noted.is_file():
        return
    with suppress(OSError):
        part = noted.with_name(f'{noted.name}.{os.getpid()}')
        part.write_text(f'{_sha256(path)}  {path.name}\n')
        os.replace(part, noted)


def _sidecar(path: Path) -> Path:
    return path.with_name(f'{path.name}.sha256')


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
