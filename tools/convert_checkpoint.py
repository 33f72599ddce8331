"""Convert an official DAT or DAT++ checkpoint to mmdat's key layout.

Not needed for training or testing, where official files load as they are; it saves a file to hand
on, resizes position-bias tables once, and tells what a file holds.

    python tools/convert_checkpoint.py official.pth mmdat.pth [--img-size 384 --window-size 12]

A classification file becomes an mmpretrain ImageClassifier (backbone and head); of a detector or
segmentor the backbone is renamed and the rest kept. Either can be given as `load_from`, and as
`checkpoint` of a backbone's `init_cfg=dict(type='Pretrained', checkpoint=...)`.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

from mmdat import DAT, __version__
from mmdat.checkpoints.reading import load_weights
from mmdat.models.checkpoint import Signature, backbone_entries, convert_official, is_official, unwrap


def convert(checkpoint: dict, img_size=None, window_size=None) -> tuple:
    """The converted state dict of the whole model, and a line that says what it is."""
    entries = {key: value for key, value in unwrap(checkpoint).items() if isinstance(value, torch.Tensor)}
    official = backbone_entries(entries)
    if not is_official(official):
        raise RuntimeError(
            'the file has no official DAT weights (no key patch_proj.0.weight)'
            + ('; it has the key layout of mmdat already' if Signature.of(official) else '')
        )
    backbone = convert_official(official)
    signature = Signature.of(backbone)
    if signature is None:
        raise RuntimeError('the file holds only a part of an official DAT')
    if img_size or window_size:
        backbone = resize(backbone, signature, img_size or 224, window_size or 7)
    converted = {f'backbone.{key}': value for key, value in backbone.items()}
    for key, value in entries.items():
        if key.startswith('cls_head.'):
            converted[key.replace('cls_head.', 'head.fc.')] = value
        elif key not in official and not key.startswith('backbone.'):
            converted[key] = value
    return converted, f'{signature}, {sum(v.numel() for v in backbone.values()):,} values in the backbone'


def resize(backbone: dict, signature: Signature, img_size: int, window_size: int) -> dict:
    """Fit the tables to another image and window size, by loading them into such a model."""
    if signature.name is None:
        raise RuntimeError(
            f'tables can only be resized for a published architecture, not for {signature}; '
            f'leave --img-size and --window-size out, they are resized when the file is loaded'
        )
    stages = sorted({int(match[1]) for match in map(re.compile(r'norm(\d)\.').match, backbone) if match})
    model = DAT(
        signature.name, img_size=img_size, window_size=window_size, out_indices=stages or (3,), out_norm=bool(stages)
    )
    model.load_state_dict(backbone)
    return model.state_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='official checkpoint')
    parser.add_argument('target', type=Path, help='file to write')
    parser.add_argument('--img-size', type=int, help='make the tables for this image size')
    parser.add_argument('--window-size', type=int, help='make the tables for this window size')
    parser.add_argument('--force', action='store_true', help='overwrite the target')
    args = parser.parse_args()
    try:
        if args.target.exists() and not args.force:
            raise RuntimeError(f'{args.target} exists: name another file, or overwrite it with --force')
        if not args.target.absolute().parent.is_dir():
            raise RuntimeError(f'there is no directory {args.target.absolute().parent} to write to: make it first')
        state_dict, what = convert(load_weights(args.source), args.img_size, args.window_size)
    except (RuntimeError, ValueError) as error:
        sys.exit(f'{Path(__file__).name}: {error}')
    torch.save({'state_dict': state_dict, 'meta': {'mmdat_version': __version__}}, args.target)
    print(f'wrote {args.target}: {what}')


if __name__ == '__main__':
    main()
