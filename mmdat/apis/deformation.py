"""What tools/visualize_deformation.py does: draw what the deformable attention of a model looks at in an image."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mmengine.config import Config
from mmengine.device import get_device

from mmdat.checkpoints.without_code import TRUSTED
from mmdat.errors import RunError
from mmdat.models import DAT
from mmdat.visualization import View, attention_page, attention_sheets, layer_names, save_sheets

from .model import load_backbone
from .network_input import network_input


def draw_deformation(
    cfg: Config,
    image: str,
    checkpoint: Optional[str] = None,
    layers: Optional[Sequence[str]] = None,
    queries: Sequence[str] = (),
    out_dir: Optional[str] = None,
    trust_files: bool = False,
    html: Optional[str] = None,
) -> tuple[list[Path], bool]:
    """Draw a sheet per stage, or write a page.

    See :func:`mmdat.visualization.attention_sheets` and :func:`mmdat.visualization.attention_page`.

    Args:
        cfg: The whole config.
        image: Image file; it is prepared as in testing.
        checkpoint: File or address of the weights; by default those that ``init_cfg`` names, or untrained ones.
        layers: Names of deformable layers; by default all.
        queries: Pixels ``x,y`` of the image whose most attended keys are drawn; by default three on the diagonal.
        out_dir: Where the sheets go; by default ``deformation/IMAGE`` in the config's work directory.
        trust_files: Let the checkpoint run code that it may contain.
        html: Write one page of HTML to this file in place of the sheets; it points at the first of ``queries``.

    Returns:
        The files, and whether the weights are trained.

    Raises:
        RunError: If something is missing, or there is no such layer or pixel.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    if trust_files:
        print(TRUSTED)
    backbone, trained = load_backbone(cfg, checkpoint, trust_files)
    layers = _choose_layers(backbone, layers)
    inputs, view = network_input(cfg, image, backbone.arch.conv_stem)
    pixels = _read_queries(queries, view)
    device = get_device()
    note = '' if trained else ' (untrained weights)'
    backbone, inputs = backbone.to(device), inputs.to(device)
    if html:
        query = pixels[0] if pixels else None
        page = attention_page(backbone, inputs, view, query, layers, title=f'{Path(image).name}{note}')
        Path(html).parent.mkdir(parents=True, exist_ok=True)
        Path(html).write_text(page, encoding='utf-8')
        return [Path(html)], trained
    sheets = attention_sheets(backbone, inputs, view, pixels, layers, note=note)
    return save_sheets(sheets, out_dir or os.path.join(cfg.work_dir, 'deformation', Path(image).stem)), trained


def _choose_layers(backbone: DAT, chosen: Optional[Sequence[str]]) -> list[str]:
    """The layers to draw; all without a choice."""
    names = layer_names(backbone)
    if not names:
        raise RunError('the backbone has no deformable attention: choose another config')
    unknown = [name for name in chosen or [] if name not in names]
    if unknown:
        raise RunError(f'there is no deformable layer {unknown[0]}: the layers are {", ".join(names)}')
    return [name for name in names if not chosen or name in chosen]


def _read_queries(texts: Sequence[str], view: View) -> list[tuple[float, float]]:
    """Queries ``x,y`` as pixels (y, x) of the picture."""
    queries = []
    height, width = view.picture.shape[:2]
    for text in texts:
        try:
            x, y = map(float, text.split(','))
        except ValueError as error:
            raise RunError(f'--query takes pixels as x,y such as 200,150, got {text}') from error
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            raise RunError(
                f'the query {text} is outside of the image, whose pixels are 0,0 to {width - 1},{height - 1}'
            )
        if not view.seen((y, x)):
            raise RunError(f'the query {text} is cut away by the test pipeline: choose one nearer to the centre')
        queries.append((y, x))
    return queries
