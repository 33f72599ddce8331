"""Count the parameters and multiply-adds of a backbone, or of the whole model of a config.

    python tools/get_flops.py --arch tiny++ --size 224
    python tools/get_flops.py configs/maskrcnn_dat_t_1x_coco.py --size 800 1280
    python tools/get_flops.py configs/maskrcnn_dat_t_1x_coco.py --backbone-only --size 800 1280

One multiply-add is one operation, as in the papers' tables ("FLOPs" there). Counted are convolutions, linear layers,
both products of every attention, and bilinear sampling with four multiply-adds per value: of the map, and of the
position-bias table for each pair of query and key. Norms, activations, softmax and additions are not counted, as is
usual. Counters that hook modules see neither the products nor the sampling: hence smaller figures elsewhere.
"""

from mmdat.cli import add_config_options, parser_of, read_config, run
from mmdat.errors import RunError


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--arch', help='a backbone by itself, such as tiny++, in place of a config')
    parser.add_argument('--backbone-only', action='store_true', help="leave the config's neck and heads out")
    parser.add_argument('--size', type=int, nargs='+', default=[224], help='height and width, or one for both')
    add_config_options(parser)
    args = parser.parse_args()
    if (args.config is None) == (args.arch is None):
        parser.error('name either a config or --arch')
    if len(args.size) > 2 or not 1 <= min(args.size) <= max(args.size) <= 2**16:
        parser.error(f'--size takes height and width in pixels, from 1 to {2**16}, got {" ".join(map(str, args.size))}')
    size = (args.size[0], args.size[-1])

    from mmdat import DAT, analysis
    from mmdat.apis import build_model

    if args.arch:
        model = DAT(args.arch)
        count = analysis.backbone_operations(size, arch=args.arch)
    else:
        cfg = read_config(args.config, args.override, args.cfg_options)
        model = build_model(cfg)
        if not isinstance(getattr(model, 'backbone', None), DAT):
            raise RunError(f'the model of {args.config} has no backbone of type mmdat.DAT: choose another config')
        count = analysis.model_operations(model, cfg, size, args.backbone_only)
        model = model.backbone if args.backbone_only else model
    print(f'{args.arch or args.config} at {size[0]}x{size[1]}')
    print(f'parameters      {analysis.parameters(model) / 1e6:10.2f} M')
    for kind, value in count.items():
        print(f'{kind:15s} {value / 1e9:10.2f} G')
    print(f'multiply-adds   {sum(count.values()) / 1e9:10.2f} G')


if __name__ == '__main__':
    run(main)
