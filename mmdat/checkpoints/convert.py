"""What tools/convert_checkpoint.py does: official checkpoints in mmdat's key layout, as files to hand on."""

import re
from pathlib import Path
from typing import Any, Optional, Union

import torch

from mmdat.errors import CheckpointError
from mmdat.models import DAT
from mmdat.models.checkpoint import Signature, backbone_entries, convert_official, is_official, unwrap
from mmdat.version import __version__

from .reading import load_weights


def convert_file(
    source: Union[str, Path],
    target: Union[str, Path],
    img_size: Optional[int] = None,
    window_size: Optional[int] = None,
    force: bool = False,
) -> str:
    """Convert a checkpoint of the official release to our key layout.

    Args:
        source: The official file.
        target: The file to write.
        img_size: Make the tables for this image size.
        window_size: Make the tables for this window size.
        force: Overwrite the target.

    Returns:
        A line that says what the file holds.

    Raises:
        CheckpointError: If the source cannot be converted, or the target not be written.
    """
    source, target = Path(source), Path(target)
    if target.exists() and not force:
        raise CheckpointError(f'{target} exists: name another file, or overwrite it with --force')
    if not target.absolute().parent.is_dir():
        raise CheckpointError(f'there is no directory {target.absolute().parent} to write to: make it first')
    state_dict, what = convert(load_weights(source), img_size, window_size)
    torch.save({'state_dict': state_dict, 'meta': {'mmdat_version': __version__}}, target)
    return what


def convert(
    checkpoint: dict[str, Any], img_size: Optional[int] = None, window_size: Optional[int] = None
) -> tuple[dict[str, torch.Tensor], str]:
    """The converted state dict of the whole model, and a line that says what it is."""
    entries = {key: value for key, value in unwrap(checkpoint).items() if isinstance(value, torch.Tensor)}
    official = backbone_entries(entries)
    if not is_official(official):
        raise CheckpointError(
            'the file has no official DAT weights (no key patch_proj.0.weight)'
            + ('; it has the key layout of mmdat already' if Signature.of(official) else '')
        )
    backbone = convert_official(official)
    signature = Signature.of(backbone)
    if signature is None:
        raise CheckpointError('the file holds only a part of an official DAT')
    if img_size or window_size:
        backbone = _resize(backbone, signature, img_size or 224, window_size or 7)
    converted = {f'backbone.{key}': value for key, value in backbone.items()}
    for key, value in entries.items():
        if key.startswith('cls_head.'):
            converted[key.replace('cls_head.', 'head.fc.')] = value
        elif key not in official and not key.startswith('backbone.'):
            converted[key] = value
    return converted, f'{signature}, {sum(v.numel() for v in backbone.values()):,} values in the backbone'


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
