"""Compare backbones: train models that differ in nothing else, with the same data, budget and seeds.

    python tools/compare.py configs/demo/maskrcnn_{datnano,datppnano,swinnano}_shapes.py --seeds 0 1 2

The configs may differ in model.backbone and in the channels that the neck or, without one, the heads take from it; that
nothing else differs is checked. Each run is a process of its own, and finished runs are not made again. Written below
--work-dir

    comparison.md      mean and standard deviation over the seeds, parameters, time and memory
    comparison.png     the curves of the results and of the loss
    comparison.json    all values
    NAME/seedN/        the runs

As jobs of a cluster: start the same command once per run with --only NAME/SEED, and at last without it.
"""

from mmdat.cli import add_config_options, parser_of, read_options, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config file')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='default: 0 1 2')
    parser.add_argument('--only', metavar='NAME/SEED', help='make only this run')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs a GPU)')
    parser.add_argument('--work-dir', default='work_dirs/compare', help='default: %(default)s')
    parser.add_argument('--data', metavar='DIR', help='the directory of your data, for --override configs/own_data/…')
    add_config_options(parser)
    args = parser.parse_args()

    from mmdat.apis import compare

    options = dict(override=args.override, options=read_options(args.cfg_options), data=args.data)
    table = compare(args.configs, args.work_dir, args.seeds, args.only, args.amp, **options)
    print(table or 'the other runs are still to be made')


if __name__ == '__main__':
    run(main)
