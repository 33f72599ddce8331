"""Evaluate a checkpoint: detection, segmentation or classification, as the config says."""

from mmdat.cli import add_run_options, parser_of, read_config, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions')
    parser.add_argument('--show-dir', metavar='DIR', help='save pictures of the predictions')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: average over the scales and flips of the config'
    )
    add_run_options(parser)
    args = parser.parse_args()

    from mmdat.apis import evaluate

    cfg = read_config(args.config, args.override, args.cfg_options, args.data, args.work_dir, args.launcher)
    evaluate(cfg, args.checkpoint, args.out, args.show_dir, args.tta, args.compile, args.trust_files)


if __name__ == '__main__':
    run(main)
