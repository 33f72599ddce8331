"""Evaluate a checkpoint: detection, segmentation or classification, as the config says."""

import argparse

from mmdat.apis import evaluate
from mmdat.cli import add_common_options, config_of, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE.pkl', help='save the predictions')
    parser.add_argument('--show-dir', metavar='DIR', help='save pictures of the predictions')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation: average over the scales and flips of the config'
    )
    add_common_options(parser)
    args = parser.parse_args()
    evaluate(config_of(args), args.checkpoint, args.out, args.show_dir, args.tta, args.compile)


if __name__ == '__main__':
    run(main)
