"""Run a trained model on images and videos: pictures of the predictions, and the predictions as files.

    python tools/infer.py CONFIG CHECKPOINT photos/ --out-dir out

writes below --out-dir

    pictures/           the images with their predictions drawn, up to 2000 pixels wide or high; NAME.mp4 for a video
    predictions.json    boxes and masks in COCO's result format; scores of classes; or the names of label maps
    images.json         COCO's "images" and "categories", which image_id and category_id refer to
    label_maps/         segmentation: PNGs with the number of the class at each pixel

Of a video each frame is an image; "frame" is its number, from 0 on. Of a panoptic model the objects are written and
all segments drawn. A file that cannot be read is named and left out; the others are finished, and the exit code is 1.
"""

from pathlib import Path

from mmdat.cli import add_config_options, add_trust_option, parser_of, read_config, run
from mmdat.errors import RunError


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('config', help='config file; training leaves the one it used in its work directory')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='an image, a folder, a glob or a video')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/infer'), help='default: %(default)s')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='leave out boxes and masks with a lower score (default: 0.3)'
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images of equal size that follow each other (default: 1)'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write predictions only')
    parser.add_argument(
        '--max-pixels', type=float, default=1e8, help='leave out images of more pixels (default: %(default)g)'
    )
    add_config_options(parser)
    add_trust_option(parser)
    args = parser.parse_args()

    from mmdat.apis.infer import infer

    cfg = read_config(args.config, args.override, args.cfg_options)
    faults = infer(
        cfg,
        args.checkpoint,
        args.inputs,
        args.out_dir,
        args.device,
        args.score_thr,
        args.batch_size,
        args.trust_files,
        not args.no_pictures,
        args.max_pixels,
    )
    print(f'predictions are in {args.out_dir.absolute()}')
    if faults:
        named = '; '.join(f'{path} ({why})' for path, why in faults.items())
        raise RunError(f'{len(faults)} files could not be read and were left out: {named}')


if __name__ == '__main__':
    run(main)
