"""Train and evaluate a model: detection, segmentation or classification, as the config says."""

import argparse

from mmdat.apis import train
from mmdat.cli import add_common_options, config_of, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
    add_common_options(parser)
    args = parser.parse_args()
    train(config_of(args), args.amp, args.resume, args.auto_scale_lr, args.compile)


if __name__ == '__main__':
    run(main)
