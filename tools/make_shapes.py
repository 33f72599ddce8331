"""Make the demo data: images of coloured shapes with labels for detection, segmentation and classification.

    python tools/make_shapes.py [--out data/shapes] [--num-train 320] [--num-val 64] [--size 128]

Takes seconds and needs no download. Data that is already there and whole is kept, half-made data is made
again. The layout is described in mmdat/datasets/shapes.py.
"""

import time

from mmdat.cli import parser_of, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('--out', default='data/shapes', help='directory to make (default: %(default)s)')
    parser.add_argument('--num-train', type=int, default=320, help='training images (default: %(default)s)')
    parser.add_argument('--num-val', type=int, default=64, help='validation images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=128, help='side of the images in pixels (default: %(default)s)')
    args = parser.parse_args()

    from mmdat.datasets import make_shapes

    start = time.time()
    if make_shapes(args.out, args.num_train, args.num_val, args.size):
        print(
            f'made {args.num_train} training and {args.num_val} validation images in {args.out} '
            f'({time.time() - start:.1f} s)'
        )
    else:
        print(f'{args.out} is already there and complete')


if __name__ == '__main__':
    run(main)
