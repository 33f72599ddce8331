"""Count the parameters and multiply-adds of a backbone, or of the whole model of a config.

    python tools/get_flops.py --arch tiny++ --size 224
    python tools/get_flops.py configs/maskrcnn_dat_t_1x_coco.py --size 800 1280
    python tools/get_flops.py configs/maskrcnn_dat_t_1x_coco.py --backbone-only --size 800 1280

One multiply-add is one operation, as in the papers' tables ("FLOPs" there). Counted are convolutions, linear layers,
both products of every attention, and bilinear sampling with four multiply-adds per value: of the map, and of the
position-bias table for each pair of query and key. Norms, activations, softmax and additions are not counted, as is
usual. Counters that hook modules see neither the products nor the sampling: hence smaller figures elsewhere.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Sequence

import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.utils.flop_counter import FlopCounterMode

from mmdat import DAT
from mmdat.models import DeformableAttention, NeighborhoodAttention, WindowAttention
from mmdat.models.arch import ARCHS

Size = tuple[int, int]
TAPS = 4  # multiply-adds of a bilinear sample


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def backbone_operations(backbone: DAT, size: Size) -> dict[str, int]:
    """Multiply-adds of a DAT on one image of a size (height, width), by kind.

    Returns:
        ``layers`` (convolutions and linear layers), ``products`` (of queries with keys, and of attention with values)
        and ``sampling`` (of maps and of position-bias tables).
    """
    count = dict(layers=0, products=0, sampling=0)
    size = _sequential(backbone.stem, size, count)
    for i, stage in enumerate(backbone.stages):
        for block in stage.blocks:
            for conv in (block.lpu, block.mlp.dwconv):
                if conv is not None:
                    _layer(conv, size, count)
            _layer(block.mlp.fc1, size, count)
            _layer(block.mlp.fc2, size, count)
            _mixer(block.mixer, size, count)
        if i < len(backbone.downsamples):
            size = _sequential(backbone.downsamples[i], size, count)
    return count


def _layer(layer: nn.Module, size: Size, count: dict[str, int], times: int = 1) -> Size:
    """Add a layer at one map size (``times`` maps of it); returns the size behind it."""
    if isinstance(layer, nn.Conv2d):
        size = tuple(
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip(size, layer.padding, layer.kernel_size, layer.stride)
        )
    elif not isinstance(layer, nn.Linear):
        return size
    # Every weight is used once for each pixel of the result.
    count['layers'] += times * math.prod(size) * layer.weight.numel()
    return size


def _sequential(layers: nn.Sequential, size: Size, count: dict[str, int], times: int = 1) -> Size:
    for layer in layers:
        size = _layer(layer, size, count, times)
    return size


def _mixer(mixer: nn.Module, size: Size, count: dict[str, int]) -> None:
    dim = mixer.proj_out.out_features
    if isinstance(mixer, DeformableAttention):
        _layer(mixer.proj_q, size, count)
        _layer(mixer.proj_out, size, count)
        if mixer.offset_net is not None:
            keys = math.prod(_sequential(mixer.offset_net, size, count, times=mixer.groups))
            count['sampling'] += keys * dim * TAPS
        else:
            keys = math.prod(side // mixer.stride for side in size)
        count['layers'] += keys * (mixer.proj_k.weight.numel() + mixer.proj_v.weight.numel())
        pairs = math.prod(size) * keys
        if mixer.position_bias == 'table':
            count['sampling'] += pairs * mixer.num_heads * TAPS
        elif mixer.position_bias == 'log':
            hidden, out = mixer.bias_mlp[0], mixer.bias_mlp[-1]
            count['layers'] += pairs * mixer.groups * (hidden.weight.numel() + out.weight.numel())
        elif mixer.position_bias == 'dwconv':
            _layer(mixer.bias_conv, size, count)
        count['products'] += 2 * pairs * dim
        return
    # Padding is done in front of qkv, and its pixels take part; the output projection comes after cropping.
    if isinstance(mixer, WindowAttention):
        keys = mixer.window_size**2
        padded = [math.ceil(side / mixer.window_size) * mixer.window_size for side in size]
    elif isinstance(mixer, NeighborhoodAttention):
        keys = mixer.kernel_size**2
        padded = [max(side, mixer.kernel_size) for side in size]
    else:
        raise TypeError(f'cannot count the mixer {type(mixer).__name__}')
    _layer(mixer.qkv, tuple(padded), count)
    _layer(mixer.proj_out, size, count)
    count['products'] += 2 * math.prod(padded) * keys * dim


def model_operations(model: nn.Module, size: Size) -> dict[str, int]:
    """Multiply-adds of a whole model on one image: those of its backbone, and ``neck and heads``.

    Neck and heads are run on random maps. Two-stage detectors get as many proposals and make as many masks as their
    test_cfg allows.
    """
    count = backbone_operations(model.backbone, size)
    maps = _random_maps(model.backbone, size)
    model.backbone.forward = lambda x: maps
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.grid_sampler_2d: _sampling_flops})
    with torch.no_grad(), counter:
        _forward(model.eval(), size)
    del model.backbone.forward
    count['neck and heads'] = counter.get_total_flops() // 2
    return count


def _random_maps(backbone: DAT, size: Size) -> tuple[torch.Tensor, ...]:
    ignored = dict(layers=0)
    sizes: list[Size] = [_sequential(backbone.stem, size, ignored)]
    for downsample in backbone.downsamples:
        sizes.append(_sequential(downsample, sizes[-1], ignored))
    return tuple(torch.randn(1, backbone.feature_channels[i], *sizes[i]) for i in backbone.out_indices)


def _sampling_flops(input_shape: Sequence[int], grid_shape: Sequence[int], *args, out_shape=None, **kwargs) -> int:
    batch, height, width, _ = grid_shape
    return 2 * TAPS * batch * input_shape[1] * height * width


def _forward(model: nn.Module, size: Size) -> None:
    """The toolboxes' forward pass in testing, as far as it multiplies."""
    image = torch.zeros(1, 3, *size)
    if _toolbox(model) == 'mmseg':
        model.encode_decode(image, [dict(img_shape=size, ori_shape=size, pad_shape=size)])
        return
    if _toolbox(model) != 'mmdet':
        model(image, mode='tensor')
        return
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_id=0, img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)
        )
    )
    roi_head = getattr(model, 'roi_head', None)
    mask_head = getattr(roi_head, 'mask_head', None)
    if mask_head is not None:
        # Masks are made for detections only; in this mode mmdet makes some for proposals.
        roi_head.mask_head = None
    model(image, [sample], mode='tensor')
    if mask_head is not None:
        roi_head.mask_head = mask_head
        heads = mask_head if isinstance(mask_head, nn.ModuleList) else [mask_head]
        for head in heads:
            head(torch.zeros(roi_head.test_cfg.max_per_img, head.in_channels, *head.roi_feat_size))


def _toolbox(model: nn.Module) -> str:
    return type(model).__module__.split('.')[0]


def load_model(path: str) -> nn.Module:
    """The model of a config, with weights as they are before training."""
    config = Config.fromfile(path)
    importlib.import_module(f'{config.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(config.default_scope)
    return MODELS.build(config.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--arch', choices=sorted(ARCHS), help='a backbone by itself, in place of a config')
    parser.add_argument('--backbone-only', action='store_true', help="leave the config's neck and heads out")
    parser.add_argument('--size', type=int, nargs='+', default=[224], help='height and width, or one for both')
    args = parser.parse_args()
    if (args.config is None) == (args.arch is None):
        sys.exit('get_flops.py: name either a config or --arch')
    if len(args.size) > 2:
        sys.exit(f'get_flops.py: --size takes height and width, got {args.size}')
    size = (args.size[0], args.size[-1])
    model = DAT(args.arch) if args.arch else load_model(args.config)
    if args.arch or args.backbone_only:
        model = getattr(model, 'backbone', model)
        count = backbone_operations(model, size)
    else:
        count = model_operations(model, size)
    print(f'{args.arch or args.config} at {size[0]}x{size[1]}')
    print(f'parameters      {parameters(model) / 1e6:10.2f} M')
    for kind, value in count.items():
        print(f'{kind:15s} {value / 1e9:10.2f} G')
    print(f'multiply-adds   {sum(count.values()) / 1e9:10.2f} G')


if __name__ == '__main__':
    main()
