"""What tools/convert_checkpoint.py does: checkpoints in mmdat's key layout, as files to hand on."""

import re
from pathlib import Path
from typing import Any, Optional, Union

import torch

from mmdat.errors import CheckpointError
from mmdat.models import DAT
from mmdat.models.checkpoint import Signature, backbone_entries, convert_model
from mmdat.version import __version__

from .schemes import read_checkpoint
from .writing import save_weights


def convert_file(
    source: Union[str, Path],
    target: Union[str, Path],
    img_size: Optional[int] = None,
    window_size: Optional[int] = None,
    force: bool = False,
) -> str:
    """Write the weights of a checkpoint in our key layout, as PyTorch or safetensors do.

    Args:
        source: A file, of the official release or of training, or ``mmdat://`` and a name.
        target: The file to write; ``.safetensors`` as its suffix chooses that format.
        img_size: Make the tables for this image size.
        window_size: Make the tables for this window size.
        force: Overwrite the target.

    Returns:
        A line that says what the file holds.

    Raises:
        CheckpointError: If the source cannot be converted, or the target not be written.
    """
    source, target = str(source), Path(target)
    if target.exists() and not force:
        raise CheckpointError(f'{target} exists: name another file, or overwrite it with --force')
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f'there is no directory {target.absolute().parent} to write to: make it first')
    try:
        state_dict, what = convert(read_checkpoint(source), img_size, window_size)
    except CheckpointError as error:
        raise CheckpointError(str(error) if source in str(error) else f'{source}: {error}') from error
    save_weights(target, state_dict, dict(mmdat_version=__version__))
    return what


def convert(
    checkpoint: dict[str, Any], img_size: Optional[int] = None, window_size: Optional[int] = None
) -> tuple[dict[str, torch.Tensor], str]:
    """The converted state dict of the whole model, and a line that says what it is."""
    state_dict = convert_model(checkpoint)
    backbone = backbone_entries(state_dict)
    signature = Signature.of(backbone)
    if img_size or window_size:
        backbone = _resize(backbone, signature, img_size or 224, window_size or 7)
        state_dict.update({f'backbone.{key}': value for key, value in backbone.items()})
    return state_dict, f'{signature}, {sum(v.numel() for v in backbone.values()):,} values in the backbone'


def _resize(backbone: dict, signature: Signature, img_size: int, window_size: int) -> dict:
    """Fit the tables to another image and window size, by loading them into such a model."""
    if signature.name is None:
        raise CheckpointError(
            f'tables can only be resized for a published architecture, not for {signature}; '
            f'leave --img-size and --window-size out, they are resized when the file is loaded'
        )
    stages = sorted({int(match[1]) for match in map(re.compile(r'norm(\d)\.').match, backbone) if match})
    model = DAT(
        signature.name, img_size=img_size, window_size=window_size, out_indices=stages or (3,), out_norm=bool(stages)
    )
    model.load_state_dict(backbone)
    return model.state_dict()
