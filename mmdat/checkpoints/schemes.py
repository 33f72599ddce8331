"""Checkpoints that MMEngine learns to load from mmdat: by name, ``mmdat://dat_t_in1k``, and .safetensors files.

They are registered when mmdat's registries are imported, as MMEngine does by itself where a config names something of
mmdat. Nothing that is registered already is replaced.
"""

from contextlib import suppress
from typing import Any

from mmengine.runner import CheckpointLoader

from mmdat.weights import SCHEME

from .pretrained import load_pretrained
from .reading import load_weights

# MMEngine takes the prefixes of its schemes for regular expressions.
SAFETENSORS = r'.*\.safetensors$'


def read_checkpoint(path: str, everything: bool = False) -> dict[str, Any]:
    """Read a local file, or published weights by their name behind ``mmdat://``, without running code of the file.

    Args:
        path: The file or name.
        everything: Refuse a file if something of it would be left out; see :func:`load_weights`.

    Raises:
        CheckpointError: If it cannot be read.
    """
    return load_from_mmdat(path) if path.startswith(SCHEME) else load_weights(path, everything)


def is_remote(path: str) -> bool:
    """Whether a checkpoint is neither a local file nor published weights by name, and only MMEngine can get it."""
    return '://' in path and not path.startswith(SCHEME)


def load_from_mmdat(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of ``mmdat://NAME``; the weights are on the CPU."""
    return load_pretrained(filename)


def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """MMEngine's loader of local .safetensors files; the weights are on the CPU."""
    return load_weights(filename)


for _scheme, _loader in ((SCHEME, load_from_mmdat), (SAFETENSORS, load_from_safetensors)):
    with suppress(KeyError):  # somebody has registered it already
        CheckpointLoader.register_scheme(_scheme, _loader)
