"""Draw what the deformable attention of a detector, segmentor or classifier looks at in an image, a sheet per stage.

    python tools/visualize_deformation.py image.jpg --config configs/maskrcnn_dat_t_1x_coco.py --checkpoint epoch_12.pth
    python tools/visualize_deformation.py image.jpg --config configs/upernet_datpp_t_160k_ade20k.py \\
        --layer stages.2.blocks.1.mixer --query 200,150 320,90

Each sheet has, for every deformable layer of the stage, the reference points with their offsets and the sampled
points, the keys that the queries attend to most, and a heat map of the attention that each place receives. The image
is prepared as in testing, by the config's test pipeline; pictures and queries are in its original pixels.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mmengine.config import DictAction
from mmengine.device import get_device

from mmdat.apis.network_input import load_backbone, network_input
from mmdat.cli import key_value, run
from mmdat.config.load import load_config
from mmdat.errors import RunError
from mmdat.models import DAT
from mmdat.visualization import View, attention_sheets, layer_names, save_sheets


def choose_layers(backbone: DAT, chosen: Optional[Sequence[str]]) -> list[str]:
    """The layers to draw; all without a choice."""
    names = layer_names(backbone)
    if not names:
        raise RunError('the backbone has no deformable attention: choose another config')
    unknown = [name for name in chosen or [] if name not in names]
    if unknown:
        raise RunError(f'there is no deformable layer {unknown[0]}: the layers are {", ".join(names)}')
    return [name for name in names if not chosen or name in chosen]


def read_queries(texts: Sequence[str], view: View) -> list[tuple[float, float]]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='image file')
    parser.add_argument('--config', required=True, help='config file of a model with the backbone mmdat.DAT')
    parser.add_argument('--checkpoint', help='its weights (default: those of init_cfg, or untrained ones)')
    parser.add_argument('--layer', nargs='+', metavar='NAME', help='deformable layers to draw (default: all)')
    parser.add_argument(
        '--query',
        nargs='+',
        default=[],
        metavar='X,Y',
        help='pixels of the image whose most attended keys are drawn (default: three on the diagonal)',
    )
    parser.add_argument('--out-dir', help='where stage{n}.png go (default: work_dirs/CONFIG/deformation/IMAGE)')
    parser.add_argument('--override', metavar='FILE', help='a config file merged over the config, as in training')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        type=key_value,
        metavar='KEY=VALUE',
        help='entries of the config to change',
    )
    args = parser.parse_args()

    cfg = load_config(args.config, args.override, args.cfg_options)
    backbone, trained = load_backbone(cfg, args.checkpoint)
    layers = choose_layers(backbone, args.layer)
    inputs, view = network_input(cfg, args.image, backbone.arch.conv_stem)
    queries = read_queries(args.query, view)
    if not trained:
        print('The weights are untrained: name trained ones with --checkpoint.')
    device = get_device()
    sheets = attention_sheets(
        backbone.to(device), inputs.to(device), view, queries, layers, note='' if trained else ' (untrained weights)'
    )
    out_dir = args.out_dir or os.path.join(cfg.work_dir, 'deformation', Path(args.image).stem)
    for file in save_sheets(sheets, out_dir):
        print(file)


if __name__ == '__main__':
    run(main)
