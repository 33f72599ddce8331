"""Multiply-adds: against a count by hand, against what really runs, and against the papers."""

import pytest
import torch
import torch.nn as nn
from in_process import ROOT
from mmengine.config import Config

from mmdat import DAT
from mmdat.analysis import backbone_operations, model_operations
from mmdat.apis import build_model

# The papers' tables: multiply-adds in units of 1e9, at 224x224.
PUBLISHED = {'tiny': 4.6, 'small': 9.0, 'base': 15.8, 'tiny++': 4.3, 'small++': 9.4, 'base++': 16.6}


@pytest.mark.parametrize('arch', sorted(PUBLISHED))
def test_backbones_have_the_published_cost(arch):
    count = backbone_operations((224, 224), arch=arch, out_indices=(3,))
    assert sum(count.values()) / 1e9 == pytest.approx(PUBLISHED[arch], abs=0.1)


@pytest.mark.parametrize('size', [(64, 96), (70, 93), (32, 224)])
def test_layers_count_what_runs(nano, size):
    """The convolutions and linear layers that a forward pass really calls, at sizes with and without padding."""
    backbone = DAT(nano).eval()
    total = 0

    def count(module, inputs, out):
        nonlocal total
        pixels = out.numel() // module.weight.shape[0]
        total += pixels * module.weight.numel()

    for module in backbone.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        backbone(torch.zeros(1, 3, *size))
    assert backbone_operations(size, arch=nano)['layers'] == total


def test_attention_by_hand():
    arch = dict(
        generation='dat',
        dims=(8, 16, 32, 64),
        depths=(1, 1, 1, 1),
        heads=(1, 2, 4, 8),
        groups=(-1, -1, -1, 2),
        stage_spec=('L', 'S', 'N', 'D'),
    )
    count = backbone_operations((64, 64), arch=arch, window_size=3)
    # Maps of 16, 8, 4 and 2 pixels a side. Windows of 3x3 pad 16 to 18 and 8 to 9; stage 4 has 4 queries and 4 keys.
    assert count['products'] == 2 * (18**2 * 9 * 8 + 9**2 * 9 * 16 + 4**2 * 9 * 32 + 4 * 4 * 64)
    # 4 multiply-adds for each of 64 channels at 4 points, and for each pair of query and key in each of 8 heads.
    assert count['sampling'] == 4 * (4 * 64 + 4 * 4 * 8)


def test_heads_are_counted():
    """A classifier adds its linear layer, 768 x 1000, to the backbone."""
    cfg = Config.fromfile(ROOT / 'configs/dat_t_300e_in1k.py')
    count = model_operations(build_model(cfg), cfg, (64, 64))
    assert count.pop('neck and heads') == 768 * 1000
    assert count == backbone_operations((64, 64), arch='tiny', out_indices=(3,))
