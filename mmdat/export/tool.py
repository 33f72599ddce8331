"""What tools/export_onnx.py does."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.config import Config
from torch import Tensor

from mmdat.apis import network_input
from mmdat.apis.predictor import dataset_meta
from mmdat.checkpoints.schemes import read_checkpoint
from mmdat.config.load import load_config
from mmdat.errors import RunError
from mmdat.models.arch import ARCHS

from .models import load_model
from .onnx import export_checked, require_packages
from .preprocessing import describe

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def export_onnx(
    source: Union[str, Config],
    out: Union[str, Path],
    checkpoint: Optional[str] = None,
    size: Sequence[int] = (224, 224),
    dynamic: bool = False,
    whole: bool = False,
    images: Sequence[Union[str, Path]] = (),
) -> Iterator[str]:
    """Write an ONNX file that computes what PyTorch does; see :func:`mmdat.export.onnx.export_checked`.

    Args:
        source: The name of an architecture, a config file or a config.
        out: The file.
        checkpoint: The weights; by default those of the backbone's ``init_cfg``, or untrained ones.
        size: Height and width of the input.
        dynamic: Leave batch, height and width open.
        whole: The whole model in place of its backbone.
        images: Pictures, or folders of them, to compare on; by default random numbers.

    Yields:
        Sentences that say what was compared and found.

    Raises:
        RunError: If the model cannot be exported, or the file computes something else.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    require_packages()
    files = list(_files(images))
    if files and source in ARCHS:
        raise RunError('--images are prepared by the test pipeline of a config, which an architecture alone has not')
    cfg = load_config(source) if isinstance(source, str) and source not in ARCHS else source
    model = load_model(cfg, checkpoint, whole)
    if whole and 'boxes' in model.outputs and not files:
        raise RunError('a whole detector is compared on pictures with objects in them: name some with --images')
    examples = [_example(cfg, file) for file in files]
    differences = export_checked(model, out, size, dynamic, examples, _about(cfg, checkpoint) if whole else None)
    for name, difference in zip(files or ['random input'] * len(differences), differences):
        yield f'{name}: onnxruntime differs from PyTorch by {difference:.1e} of what is allowed'
    yield f'{out}: computes what PyTorch does'


def _example(cfg: Config, file: Path) -> tuple[Tensor, list[int]]:
    """A picture as the network gets it, ``(1, 3, H, W)``, and height and width of what is no padding."""
    inputs, view = network_input(cfg, file, conv_stem=False)
    sides = zip(view.picture.shape, view.scale, inputs.shape[2:])
    return inputs, [min(round(side * scale), padded) for side, scale, padded in sides]


def _files(names: Sequence[Union[str, Path]]) -> Iterator[Path]:
    for name in map(Path, names):
        if not name.exists():
            raise RunError(f'there is no picture {name.absolute()}: correct --images')
        if name.is_dir():
            yield from sorted(file for file in name.iterdir() if file.suffix.lower() in IMAGES)
        else:
            yield name


def _about(cfg: Config, checkpoint: Optional[str]) -> dict[str, Any]:
    meta = dataset_meta(cfg, read_checkpoint(checkpoint) if checkpoint else {})
    return dict(describe(cfg), classes=list(meta['classes']))
