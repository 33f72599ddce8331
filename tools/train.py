"""Train and evaluate a model: detection, segmentation or classification, as the config says."""

from mmdat.cli import add_run_options, parser_of, read_config, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision (needs a GPU)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint; without PATH, from the latest in the work directory',
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size of all GPUs'
    )
    parser.add_argument(
        '--val-fraction',
        type=float,
        metavar='PART',
        help='hold a part of the training data, such as 0.1, back for validation, for --override configs/own_data/…',
    )
    add_run_options(parser)
    args = parser.parse_args()

    from mmdat.apis import train

    cfg = read_config(
        args.config, args.override, args.cfg_options, args.data, args.work_dir, args.launcher, args.val_fraction
    )
    train(cfg, args.amp, args.resume, args.auto_scale_lr, args.compile, args.trust_files)


if __name__ == '__main__':
    run(main)
