"""DAT and its mixers by name in MMDetection, MMSegmentation and MMPretrain, without any import."""

import mmdet.models
import mmpretrain.models
import mmseg.models
import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from test_mixers import MIXERS

import mmdat
from mmdat import DAT

REGISTRIES = [MODELS, mmdet.registry.MODELS, mmseg.registry.MODELS, mmpretrain.registry.MODELS]


@pytest.mark.parametrize('registry', REGISTRIES, ids=lambda registry: registry.scope)
def test_every_toolbox_builds_it_by_name(registry, nano):
    assert type(registry.build(dict(type='mmdat.DAT', arch=nano))) is mmdat.DAT


def test_init_weights_is_that_of_a_base_module(nano):
    """Once, by the model that the backbone is a part of, and by any initialiser of MMEngine."""

    class Model(BaseModule):
        def __init__(self):
            super().__init__()
            self.backbone = DAT(nano, img_size=64, init_cfg=dict(type='Constant', layer='Linear', val=0.25, bias=0.5))

    model = Model()
    model.init_weights()
    layer = model.backbone.stages[2].blocks[0].mlp.fc1
    assert (layer.weight == 0.25).all() and (layer.bias == 0.5).all()
    assert model.backbone.is_init and isinstance(model.backbone, BaseModule)
    torch.nn.init.zeros_(layer.weight)
    model.init_weights()
    assert not layer.weight.any()


@pytest.mark.parametrize('name', MIXERS)
@pytest.mark.parametrize('toolbox', [mmdet, mmseg], ids=lambda toolbox: toolbox.__name__)
def test_plugin_of_a_resnet(name, toolbox):
    plugin = dict(
        cfg=dict(type=f'mmdat.{name}', **MIXERS[name]),
        stages=(False, False, True, True),
        position='after_conv2',
    )
    scope = toolbox.__name__
    with DefaultScope.overwrite_default_scope(scope):
        resnet = dict(type='ResNet', depth=50, base_channels=8, plugins=[plugin], zero_init_residual=False)
        model = toolbox.registry.MODELS.build(resnet)
        model.init_weights()
    found = {path: m for path, m in model.named_modules() if isinstance(m, getattr(mmdat, name))}
    abbreviation = {
        'DeformableAttention': 'deformable_attention',
        'NeighborhoodAttention': 'neighborhood_attention',
        'WindowAttention': 'window_attention',
        'ShiftedWindowAttention': 'shifted_window_attention',
    }[name]
    assert list(found) == [f'layer{3 + i // 6}.{i % 6}.{abbreviation}' for i in range(9)]
    outs = model(torch.randn(1, 3, 70, 96))
    assert [tuple(out.shape[2:]) for out in outs] == [(18, 24), (9, 12), (5, 6), (3, 3)]
    sum(out.square().mean() for out in outs).backward()
    weights = [p for m in found.values() for name, p in m.named_parameters() if name.endswith('weight')]
    assert all(p.grad.any() and p.grad.isfinite().all() for p in weights)
