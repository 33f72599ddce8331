"""The mixers as modules of their own: in plain PyTorch, and by name as plug-ins of other backbones."""

import mmdet.models
import mmseg.models
import pytest
import torch
from mmengine.registry import DefaultScope

import mmdat
from mmdat import DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention

MIXERS = {
    'DeformableAttention': dict(num_heads=4, groups=2),
    'NeighborhoodAttention': dict(num_heads=4),
    'WindowAttention': dict(num_heads=4),
    'ShiftedWindowAttention': dict(num_heads=4, window_size=4),
}
mixers = pytest.mark.parametrize('name', MIXERS)


@mixers
@pytest.mark.parametrize('size', [(1, 1), (3, 10), (16, 9)])
def test_maps_of_any_size_in_plain_pytorch(name, size):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), getattr(mmdat, name)(8, **MIXERS[name]), torch.nn.ReLU())
    out = net(torch.randn(2, 3, *size))
    assert out.shape == (2, 8, *size)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if min(size) > 1:  # a softmax over one key has no gradient
        assert all(p.grad.any() for name, p in net.named_parameters() if name.endswith('weight'))


@mixers
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


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: WindowAttention(30, 4), r'num_heads=4 does not divide in_channels=30'),
        (lambda: ShiftedWindowAttention(30, 4), r'num_heads=4 does not divide in_channels=30'),
        (lambda: NeighborhoodAttention(30, 0), r'num_heads=0 does not divide in_channels=30'),
        (lambda: DeformableAttention(30, 4, 2), r'num_heads=4 does not divide in_channels=30'),
        (lambda: DeformableAttention(32, 4, 3), r'groups=3 does not divide num_heads=4'),
        (lambda: DeformableAttention(32, 4, 2, kernel_size=4), r'kernel_size=4 is even; .* or equal stride=1'),
        (lambda: NeighborhoodAttention(32, 4, kernel_size=4), r'odd kernel_size .*, got 4'),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
