"""The weights of a mixer in official files: their names, their shapes, and tables of other sizes."""

import re
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

TABLE = 'relative_position_bias_table'

# Official name to ours, applied in this order.
_RENAMES = [
    (re.compile(pattern), target)
    for pattern, target in [
        (r'^proj_qkv\.', 'qkv.'),
        (r'^proj\.', 'proj_out.'),
        (r'^conv_offset\.(\d+)\.(norm\.)?', r'offset_net.\1.'),
        (r'^(rpe_table|rpb)$', TABLE),
        (r'^rpe_table\.(weight|bias)$', r'bias_conv.\1'),
        (r'^rpe_table\.(\d+)\.', r'bias_mlp.\1.'),
    ]
]
# 1x1 convolutions that are linear layers here.
_LINEAR = re.compile(r'^(proj_[qkv]|proj_out|offset_net\.3)\.weight$')


def convert_weight(name: str, value: Tensor) -> tuple[str, Tensor]:
    """An official weight of a mixer, by its name within it, as ours."""
    for pattern, target in _RENAMES:
        name = pattern.sub(target, name)
    return name, value.flatten(1) if _LINEAR.match(name) and value.dim() == 4 else value


def adapt_layer(layer: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Make the entries below ``prefix`` fit a deformable layer, in place.

    Converts those of a single official layer (``DAttentionBaseline``), and resizes the table of a layer for maps.
    """
    if f'{prefix}conv_offset.0.weight' in state_dict:
        own = layer.state_dict()
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name, value = convert_weight(key[len(prefix) :], state_dict.pop(key))
            # Official layers without offsets store their offset networks all the same.
            if name in own or not name.startswith('offset_net.'):
                state_dict[prefix + name] = value
    table, own_table = state_dict.get(prefix + TABLE), getattr(layer, TABLE, None)
    both = table is not None and own_table is not None
    if both and table.dim() == own_table.dim() == 3 and table.shape != own_table.shape:
        state_dict[prefix + TABLE] = resize_table(table, own_table.shape)


def resize_table(table: Tensor, shape: torch.Size) -> Tensor:
    """Resize a position-bias table bicubically; L and S keep theirs as ``(side * side, heads)``."""
    dtype = table.dtype
    table = table.to(torch.promote_types(dtype, torch.float32))
    if table.dim() == 2:
        side, new_side = round(table.shape[0] ** 0.5), round(shape[0] ** 0.5)
        image = table.t().reshape(1, -1, side, side)
        return F.interpolate(image, size=(new_side, new_side), mode='bicubic').flatten(2)[0].t().to(dtype)
    return F.interpolate(table[None], size=tuple(shape[1:]), mode='bicubic')[0].to(dtype)
