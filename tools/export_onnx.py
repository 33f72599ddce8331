"""Export a backbone, or a whole model, to ONNX and check the file against PyTorch.

    python tools/export_onnx.py tiny++ dat_pp_tiny.onnx --size 224 224
    python tools/export_onnx.py configs/maskrcnn_dat_t_1x_coco.py backbone.onnx --checkpoint epoch_12.pth
    python tools/export_onnx.py configs/maskrcnn_dat_t_1x_coco.py maskrcnn.onnx --whole --checkpoint epoch_12.pth \\
        --size 800 1344 --images my_images

A whole classifier, segmentor, RetinaNet, Faster, Mask or Cascade R-CNN has its preprocessing in the file's metadata and
is run without PyTorch by tools/infer_onnx.py. The file is kept only if onnxruntime computes what PyTorch does.
"""

import argparse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='CONFIG_OR_ARCH', help='config file, or an architecture such as tiny++')
    parser.add_argument('out', metavar='OUT.onnx', help='file to write')
    parser.add_argument('--checkpoint', help='weights (default: those of init_cfg of the backbone, or untrained ones)')
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='default: 224 224')
    parser.add_argument('--dynamic', action='store_true', help='leave batch, height and width open')
    parser.add_argument('--whole', action='store_true', help='the whole model in place of the backbone')
    parser.add_argument(
        '--images',
        nargs='+',
        metavar='IMAGE',
        help='pictures to compare on, files or folders; a whole detector needs some with objects in them',
    )
    args = parser.parse_args()

    from mmdat.export import export_onnx

    for line in export_onnx(
        args.source, args.out, args.checkpoint, args.size, args.dynamic, args.whole, args.images or ()
    ):
        print(line)


if __name__ == '__main__':
    from mmdat.cli import run

    run(main)
