"""Write the weights of a DAT or DAT++ in mmdat's key layout, as a .pth or .safetensors file.

Not needed for training or testing, where official files load as they are; it saves a file to hand
on, resizes position-bias tables once, and tells what a file holds.

    python tools/convert_checkpoint.py official.pth mmdat.pth [--img-size 384 --window-size 12]
    python tools/convert_checkpoint.py mmdat://dat_t_in1k dat_t.safetensors

Of a checkpoint of training the weights alone are kept. An official classification file becomes an
mmpretrain ImageClassifier (backbone and head); of a detector or segmentor the backbone is renamed and
the rest kept. Either can be given as `load_from`, and as `checkpoint` of a backbone's
`init_cfg=dict(type='Pretrained', checkpoint=...)`.
"""

from pathlib import Path

from mmdat.cli import parser_of, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('source', help='checkpoint, official or of training, or mmdat://NAME')
    parser.add_argument('target', type=Path, help='file to write; its suffix chooses the format')
    parser.add_argument('--img-size', type=int, help='make the tables for this image size')
    parser.add_argument('--window-size', type=int, help='make the tables for this window size')
    parser.add_argument('--force', action='store_true', help='overwrite the target')
    args = parser.parse_args()

    from mmdat.checkpoints.convert import convert_file

    what = convert_file(args.source, args.target, args.img_size, args.window_size, args.force)
    print(f'wrote {args.target}: {what}')


if __name__ == '__main__':
    run(main)
