"""Parameters and multiply-adds of a backbone, or of the whole model of a config.

One multiply-add is one operation, as in the papers' tables ("FLOPs" there). Counted are convolutions, linear layers,
both products of every attention, and bilinear sampling with four multiply-adds per value: of the map, and of the
position-bias table for each pair of query and key. Norms, activations, softmax and additions are not counted, as is
usual. Counters that hook modules see neither the products nor the sampling: hence smaller figures elsewhere.
"""

from collections.abc import Sequence
from typing import Any, Callable

import torch
import torch.nn as nn
from mmengine.config import Config
from torch.utils.flop_counter import FlopCounterMode

from mmdat.models import DAT

Size = tuple[int, int]
_TAPS = 4  # multiply-adds of a bilinear sample
_aten = torch.ops.aten
_KINDS = {
    'layers': (_aten.convolution, _aten.mm, _aten.addmm),
    'products': (_aten.bmm, _aten.baddbmm),
    'sampling': (_aten.grid_sampler_2d,),
}


def parameters(module: nn.Module) -> int:
    """The number of values in the parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def backbone_operations(size: Size, **arguments: Any) -> dict[str, int]:
    """Multiply-adds of a DAT on one image.

    They are counted while the network runs, in its naive form and on tensors without values.

    Args:
        size: Height and width of the image.
        **arguments: Those of :class:`mmdat.DAT`.

    Returns:
        ``layers`` (convolutions and linear layers), ``products`` (of queries with keys, and of attention with values)
        and ``sampling`` (of maps and of position-bias tables).
    """
    return _on_meta(size, arguments)[0]


def _on_meta(size: Size, arguments: dict[str, Any]) -> tuple[dict[str, int], list[torch.Size]]:
    """The operations of a backbone, and the shapes of its maps."""
    shapes = []
    with torch.device('meta'):
        backbone = DAT(**{**arguments, 'attn_impl': 'naive', 'sampler': 'torch', 'init_cfg': None}).eval()
        image = torch.empty(1, arguments.get('in_channels', 3), *size)
    counts = _count(lambda: shapes.extend(out.shape for out in backbone(image)))
    return {kind: sum(counts.get(operator, 0) for operator in operators) for kind, operators in _KINDS.items()}, shapes


def model_operations(model: nn.Module, cfg: Config, size: Size, backbone_only: bool = False) -> dict[str, int]:
    """Multiply-adds of the model of a config on one image: those of its backbone, and ``neck and heads``.

    Neck and heads are run on random maps. Two-stage detectors get as many proposals and make as many masks as their
    test_cfg allows.

    Args:
        model: The model, as :func:`mmdat.apis.build_model` makes it of the config.
        cfg: The whole config.
        size: Height and width of the image.
        backbone_only: Leave neck and heads out.
    """
    count, shapes = _on_meta(size, {key: value for key, value in cfg.model.backbone.items() if key != 'type'})
    if backbone_only:
        return count
    maps = tuple(map(torch.randn, shapes))
    model.backbone.forward = lambda x: maps
    try:
        count['neck and heads'] = sum(_count(lambda: _forward(model.eval(), size)).values())
    finally:
        del model.backbone.forward
    return count


def _count(run: Callable[[], Any]) -> dict[Any, int]:
    """Multiply-adds of what a function runs, by operator."""
    counter = FlopCounterMode(display=False, custom_mapping={_aten.grid_sampler_2d: _sampling})
    with torch.no_grad(), counter:
        run()
    return {operator: flops // 2 for operator, flops in counter.get_flop_counts()['Global'].items()}


def _sampling(input_shape: Sequence[int], grid_shape: Sequence[int], *args: Any, **kwargs: Any) -> int:
    batch, height, width, _ = grid_shape
    return 2 * _TAPS * batch * input_shape[1] * height * width


def _forward(model: nn.Module, size: Size) -> None:
    """The toolboxes' forward pass in testing, as far as it multiplies."""
    toolbox = type(model).__module__.split('.')[0]
    image = torch.zeros(1, 3, *size)
    if toolbox == 'mmseg':
        model.encode_decode(image, [dict(img_shape=size, ori_shape=size, pad_shape=size)])
        return
    if toolbox != 'mmdet':
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
