"""MMEngine and the toolboxes, held to reading files without running code in them."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlparse

import torch
import yaml
from mmengine.dist import barrier, get_rank
from mmengine.fileio.handlers import BaseFileHandler, PickleHandler, YamlHandler, file_handlers
from mmengine.runner import CheckpointLoader

from mmdat.errors import CheckpointError, RunError
from mmdat.weights import SCHEME

from . import schemes  # which are registered before anything is replaced for a while
from .reading import load_pickle, torch_loads_weights_only

#: What the log of a run says where files are trusted.
TRUSTED = 'Files are trusted (--trust-files): checkpoints and annotations may run code that they contain.'


class CheckpointFiles:
    """The checkpoints of a run: what was read to be checked is what MMEngine gets when it loads the same file.

    Args:
        trust: Read files with all their objects, which runs code that they may contain.
    """

    def __init__(self, trust: bool = False):
        self.trust = trust
        self._read: dict[str, dict[str, Any]] = {}

    def read(self, path: str, everything: bool = False) -> dict[str, Any]:
        """Read a file or published weights as :func:`read_checkpoint` does, and keep them until MMEngine loads them."""
        if path not in self._read or everything:
            self._read[path] = self._load(path, everything)
        return self._read[path]

    def load_from_local(self, filename: str, map_location: Any = None) -> dict[str, Any]:
        """MMEngine's loader for local files and published weights."""
        if filename in self._read:
            return self._read.pop(filename)
        return self._load(filename)

    def load_from_http(self, filename: str, map_location: Any = None) -> dict[str, Any]:
        """MMEngine's loader for addresses."""
        return self._load(str(_download(filename)))

    def _load(self, path: str, everything: bool = False) -> dict[str, Any]:
        file = Path(path).expanduser()
        if self.trust and file.is_file() and file.suffix != '.safetensors':
            return torch.load(file, map_location='cpu', weights_only=False)
        return schemes.read_checkpoint(path, everything)


@contextmanager
def reading_without_code(trust: bool = False) -> Iterator[CheckpointFiles]:
    """While it lasts, nothing that MMEngine reads can run code; afterwards all is as it was.

    - Checkpoints, local, by name or at http(s) addresses, are read by :func:`load_weights`, for whatever purpose.
    - ``torch.load``, whoever calls it, takes tensors and plain values only.
    - Annotations in pickle or YAML files may hold plain values and arrays of numbers only.

    Configs are Python, and run.

    Args:
        trust: Restrict nothing: for files of your own whose objects a hook or dataset of yours needs.

    Yields:
        What reads the checkpoints of the run.
    """
    files = CheckpointFiles(trust)
    # MMEngine has a public way to register a loader, and none to ask for the present one or to take one away.
    loaders = CheckpointLoader._schemes.copy()
    CheckpointLoader.register_scheme(('', schemes.SAFETENSORS, SCHEME), files.load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), files.load_from_http, force=True)
    handlers = dict(file_handlers)
    try:
        if trust:
            yield files
        else:
            file_handlers.update(_HANDLERS)
            with torch_loads_weights_only():
                yield files
    finally:
        CheckpointLoader._schemes = loaders
        file_handlers.clear()
        file_handlers.update(handlers)


def _download(address: str) -> Path:
    """The file of an address in PyTorch's cache of checkpoints."""
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(address).path))
    if get_rank() > 0:
        barrier()  # the main process is first; on its machine the others find the file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(path), progress=False)
        except OSError as error:
            raise CheckpointError(
                f'{address} cannot be downloaded ({error}): correct the address, or download the file and name it'
            ) from error
    if get_rank() == 0:
        barrier()
    return path


class _PlainPickles(PickleHandler):
    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        try:
            return load_pickle(file, **kwargs)
        except (pickle.UnpicklingError, EOFError) as error:
            raise RunError(
                f'a pickle file of the data has {error}: store plain values, or JSON (or read it with --trust-files)'
            ) from error


class _PlainYaml(YamlHandler):
    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        try:
            return yaml.safe_load(file)
        except (yaml.YAMLError, RecursionError) as error:
            problem = getattr(error, 'problem', None) or 'it cannot be parsed'
            raise RunError(
                f'a YAML file of the data has more than plain values ({problem}): store JSON (or read it with '
                f'--trust-files)'
            ) from error


_HANDLERS: dict[str, BaseFileHandler] = {
    'pkl': _PlainPickles(),
    'pickle': _PlainPickles(),
    'yaml': _PlainYaml(),
    'yml': _PlainYaml(),
}
