"""Draw what the deformable attention of a detector, segmentor or classifier looks at in an image, a sheet per stage.

    python tools/visualize_deformation.py image.jpg --config configs/maskrcnn_dat_t_1x_coco.py --checkpoint epoch_12.pth
    python tools/visualize_deformation.py image.jpg --config configs/upernet_datpp_t_160k_ade20k.py \\
        --layer stages.2.blocks.1.mixer --query 200,150 320,90
    python tools/visualize_deformation.py image.jpg --config configs/dat_t_300e_in1k.py --html deformation.html

Each sheet has, for every deformable layer of the stage, the reference points with their offsets and the sampled
points, the keys that the queries attend to most, and a heat map of the attention that each place receives. The image
is prepared as in testing, by the config's test pipeline; pictures and queries are in its original pixels.
"""

from mmdat.cli import add_config_options, add_trust_option, parser_of, read_config, run


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument('image', help='image file')
    parser.add_argument('--config', required=True, help='config file of a model with the backbone mmdat.DAT')
    parser.add_argument('--checkpoint', help='its weights (default: those of init_cfg, or untrained ones)')
    parser.add_argument('--layer', nargs='+', metavar='NAME', help='deformable layers to draw (default: all)')
    parser.add_argument(
        '--query',
        nargs='+',
        default=[],
        metavar='X,Y',
        help='pixels of the image whose most attended keys are drawn (default: three on the diagonal)',
    )
    parser.add_argument('--out-dir', help='where stage{n}.png go (default: work_dirs/CONFIG/deformation/IMAGE)')
    parser.add_argument(
        '--html', metavar='FILE', help='write one page to point at in a browser, in place of the sheets'
    )
    add_config_options(parser)
    add_trust_option(parser)
    args = parser.parse_args()

    from mmdat.apis.deformation import draw_deformation

    cfg = read_config(args.config, args.override, args.cfg_options)
    files, trained = draw_deformation(
        cfg, args.image, args.checkpoint, args.layer, args.query, args.out_dir, args.trust_files, args.html
    )
    if not trained:
        print('The weights are untrained: name trained ones with --checkpoint.')
    print(*files, sep='\n')


if __name__ == '__main__':
    run(main)
