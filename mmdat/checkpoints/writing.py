"""Checkpoints to hand on: PyTorch's format or, by the suffix of the file, safetensors."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Union

import torch
from torch import Tensor

from mmdat.errors import CheckpointError


def save_weights(path: Union[str, Path], state_dict: dict[str, Tensor], meta: dict[str, str]) -> None:
    """Write weights as ``{'state_dict': …, 'meta': …}``, whole or not at all.

    Args:
        path: The file; ``.safetensors`` as its suffix chooses that format.
        state_dict: The weights.
        meta: What else is to be known about them.

    Raises:
        CheckpointError: If the file cannot be written, or safetensors is not installed.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    try:
        if path.suffix == '.safetensors':
            _save_safetensors(part, state_dict, meta)
        else:
            torch.save(dict(state_dict=state_dict, meta=meta), part)
        os.replace(part, path)
    except CheckpointError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for a full disk
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise CheckpointError(f'{path} cannot be written ({reason}): free some space, or name another place') from error
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _save_safetensors(path: Path, state_dict: dict[str, Tensor], meta: dict[str, str]) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise CheckpointError(
            f'writing {path.with_suffix("")} needs the package safetensors: pip install safetensors, or name a .pth '
            f'file'
        ) from error
    # The format takes neither views nor tensors that share their memory.
    weights = {key: value.clone(memory_format=torch.contiguous_format) for key, value in state_dict.items()}
    try:
        save_file(weights, path, metadata=dict(meta, format='pt'))
    except SafetensorError as error:
        raise OSError(str(error)) from error
