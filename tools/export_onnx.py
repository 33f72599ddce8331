"""Export a backbone, or a whole segmentor, to ONNX and check the file against PyTorch.

    python tools/export_onnx.py tiny++ dat_pp_tiny.onnx --size 224 224
    python tools/export_onnx.py configs/maskrcnn_dat_t_1x_coco.py backbone.onnx --checkpoint epoch_12.pth
    python tools/export_onnx.py configs/upernet_dat_t_160k_ade20k.py upernet.onnx --whole --size 512 512

The model gets preprocessed images, ``input`` of (batch, 3, height, width); a backbone returns its maps, a segmentor
logits of the size of the image. The file is run by onnxruntime on random images, and kept only if it agrees with
PyTorch to 1e-4 of the largest value.
"""

import argparse
import importlib
import importlib.util
import inspect
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np
import torch
import torch.nn as nn
import torch.onnx
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor

from mmdat import DAT
from mmdat.apis.network_input import load_backbone
from mmdat.checkpoints.reading import load_weights
from mmdat.cli import run
from mmdat.config.load import load_config
from mmdat.errors import CheckpointError, RunError
from mmdat.models import DeformableAttention, NeighborhoodAttention, WindowAttention
from mmdat.models.arch import ARCHS
from mmdat.models.checkpoint import unwrap
from mmdat.models.dat import MIN_SIZE

TOLERANCE = 1e-4
Shape = tuple[int, int, int]  # batch, height, width


class SegmentorLogits(nn.Module):
    """An mmseg segmentor from preprocessed images to logits of their size, ``(B, classes, H, W)``."""

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, x: Tensor) -> Tensor:
        return self.segmentor.encode_decode(x, [dict(img_shape=(x.shape[2], x.shape[3]))])


class AveragePool(nn.Module):
    """What :class:`torch.nn.AdaptiveAvgPool2d` computes, as products with matrices of weights.

    PyTorch's exporter unrolls that module for the size of the example, so it would be wrong at other sizes.

    Args:
        output_size: Rows and columns of the output.
    """

    def __init__(self, output_size: int):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, output_size, output_size)``."""
        rows, cols = [self._weights(side, x) for side in x.shape[2:]]
        return rows @ x @ cols.t()

    def _weights(self, side: int, like: Tensor) -> Tensor:
        """The share of each pixel in each mean along one axis, ``(output_size, side)``."""
        cell = torch.arange(self.output_size, device=like.device)[:, None]
        first, last = cell * side // self.output_size, ((cell + 1) * side - 1) // self.output_size
        pixel = torch.arange(side, device=like.device)
        return ((pixel >= first) & (pixel <= last)).to(like.dtype) / (last - first + 1)


def load_model(source: str, checkpoint: Optional[str], whole: bool) -> nn.Module:
    """The backbone of an arch or a config, or a config's whole segmentor, in eval mode and of plain operations.

    Raises:
        RunError: If there is no such model, or it cannot be exported whole.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    if source in ARCHS:
        if whole:
            raise RunError(f'--whole exports the segmentor of a config, but {source} is a backbone by itself')
        model = DAT(source)
        if checkpoint:
            model.load_state_dict(unwrap(load_weights(checkpoint)))
    else:
        cfg = load_config(source)
        if whole:
            model = _load_segmentor(cfg, checkpoint)
        else:
            model, _ = load_backbone(cfg, checkpoint)
    for module in model.modules():
        if isinstance(module, (DeformableAttention, NeighborhoodAttention, WindowAttention)):
            module.impl = 'naive'  # the fast forms are operators of our own, which ONNX does not know
        if isinstance(module, DeformableAttention):
            module.sampler = 'torch'
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(module, name, AveragePool(child.output_size))
    return model.eval().requires_grad_(False)


def _load_segmentor(cfg, checkpoint: Optional[str]) -> nn.Module:
    if cfg.get('default_scope') != 'mmseg':
        raise RunError(
            f'--whole exports segmentors only, but the config is for {cfg.get("default_scope")}: export its '
            f'backbone, without --whole'
        )
    importlib.import_module('mmseg.utils').register_all_modules(init_default_scope=False)
    init_default_scope('mmseg')
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    if checkpoint:
        missing = model.load_state_dict(unwrap(load_weights(checkpoint)), strict=False).missing_keys
        if missing:
            raise CheckpointError(
                f'{checkpoint} lacks weights of the segmentor, such as {missing[0]}: choose a checkpoint of this config'
            )
    return SegmentorLogits(model)


def export(model: nn.Module, path: str, size: Sequence[int], dynamic: bool = False) -> None:
    """Write an ONNX file.

    Args:
        model: A module of one input, in eval mode.
        path: The file.
        size: Height and width of the image.
        dynamic: Leave batch, height and width open; else the batch is 1 and the size the given one.

    Raises:
        RunError: If PyTorch's exporter cannot.
    """
    require_packages()
    dim = torch.export.Dim
    dims = {0: dim.DYNAMIC, 2: dim.DYNAMIC, 3: dim.DYNAMIC} if dynamic else None
    # An axis that has length 1 in the example stays fixed, also that of windows: at 256 pixels the last stage has two.
    image = torch.randn(2, 3, *[max(side, 256) for side in size]) if dynamic else torch.randn(1, 3, *size)
    try:
        # torch.onnx.export alone would quietly fix sizes that it cannot keep open.
        program = torch.export.export(model, (image,), dynamic_shapes=(dims,) if dynamic else None, strict=False)
        onnx_program = torch.onnx.export(program, (), dynamo=True, verbose=False, input_names=['input'])
    except Exception as error:  # the exporter has many kinds, without a common base
        reason = str(error).strip().split('\n')[0]
        hint = ' with --dynamic: export it for a fixed size' if dynamic else f' at {size[0]}x{size[1]}'
        raise RunError(f'the exporter of PyTorch cannot export this model{hint} ({reason})') from error
    onnx_program.save(path)


def require_packages() -> None:
    """Raises RunError if the packages or PyTorch's exporter are missing."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise RunError(f'export needs the package {name}: pip install -r requirements/export.txt')
    if 'dynamo' not in inspect.signature(torch.onnx.export).parameters or not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise RunError(f'export needs PyTorch 2.6 or newer, this is {torch.__version__}')


def check(model: nn.Module, path: str, shapes: Sequence[Shape]) -> list[float]:
    """The largest difference of onnxruntime from PyTorch on a random image batch of each shape.

    It is relative to the largest absolute value of each output; infinite if onnxruntime refuses or returns other sizes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [_difference(model, session, torch.randn(batch, 3, height, width)) for batch, height, width in shapes]


def _difference(model: nn.Module, session, image: Tensor) -> float:
    with torch.no_grad():
        expected = model(image)
    expected = [out.numpy() for out in ([expected] if isinstance(expected, Tensor) else expected)]
    try:
        outs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    except Exception as error:  # onnxruntime's exceptions share no base
        warnings.warn(f'onnxruntime failed for an input of {tuple(image.shape)}: {error}', stacklevel=2)
        return float('inf')
    if [out.shape for out in outs] != [out.shape for out in expected]:
        return float('inf')
    return max(float(np.abs(out - other).max() / np.abs(other).max()) for out, other in zip(outs, expected))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='CONFIG_OR_ARCH', help=f'config file, or one of {", ".join(ARCHS)}')
    parser.add_argument('out', metavar='OUT.onnx', help='file to write')
    parser.add_argument('--checkpoint', help='weights (default: those of init_cfg of the backbone, or untrained ones)')
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='default: 224 224')
    parser.add_argument('--dynamic', action='store_true', help='leave batch, height and width open')
    parser.add_argument('--whole', action='store_true', help='the whole segmentor in place of the backbone')
    args = parser.parse_args()

    require_packages()
    height, width = args.size
    if min(args.size) < MIN_SIZE:
        raise RunError(f'--size must be at least {MIN_SIZE} in both directions, got {height} {width}')
    if args.dynamic:
        shapes = [(2, height, width), (1, height + 37, width), (3, height, width + 70)]
    else:
        shapes = [(1, height, width)] * 3
    model = load_model(args.source, args.checkpoint, args.whole)
    out = Path(args.out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=out.parent
    ) as directory:  # a file that is there stays until the new one is good
        path = Path(directory, out.name)
        export(model, str(path), args.size, args.dynamic)
        differences = check(model, str(path), shapes)
        for shape, difference in zip(shapes, differences):
            print(
                f'{shape[0]}x3x{shape[1]}x{shape[2]}: onnxruntime differs from PyTorch by {difference:.1e} of the '
                'largest value'
            )
        if not max(differences) <= TOLERANCE:
            raise RunError(
                f'the exported file differs by more than {TOLERANCE:.0e} and was not kept: '
                f'{"export it for a fixed size" if args.dynamic else "please report the model"}'
            )
        path.replace(out)
    print(f'{args.out}: agrees with PyTorch to {TOLERANCE:.0e}')


if __name__ == '__main__':
    run(main)
