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

from . import schemes  # noqa: F401, which are registered before anything is replaced for a while
from .reading import load_pickle, load_weights, torch_loads_weights_only


@contextmanager
def reading_without_code() -> Iterator[None]:
    """While it lasts, nothing that MMEngine reads can run code; a decorator, too.

    - Checkpoints, local or at http(s) addresses, are read by :func:`load_weights`, for whatever purpose.
    - ``torch.load``, whoever calls it, takes tensors and plain values only.
    - Annotations in pickle or YAML files may hold plain values and arrays of numbers only.

    Configs are Python, and run.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(('http://', 'https://'), load_from_http, force=True)
    before = dict(file_handlers)
    file_handlers.update(_HANDLERS)
    try:
        with torch_loads_weights_only():
            yield
    finally:
        file_handlers.update(before)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    return load_weights(filename)


def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    return load_weights(_download(filename))


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
            raise RunError(f'a pickle file of the data has {error}: store plain values, or JSON') from error


class _PlainYaml(YamlHandler):
    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        try:
            return yaml.safe_load(file)
        except (yaml.YAMLError, RecursionError) as error:
            problem = getattr(error, 'problem', None) or 'it cannot be parsed'
            raise RunError(f'a YAML file of the data has more than plain values ({problem}): store JSON') from error


_HANDLERS: dict[str, BaseFileHandler] = {
    'pkl': _PlainPickles(),
    'pickle': _PlainPickles(),
    'yaml': _PlainYaml(),
    'yml': _PlainYaml(),
}
