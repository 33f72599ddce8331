"""The mixers as modules of their own, in plain PyTorch."""

import pytest
import torch

import mmdat
from mmdat import DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention

pytestmark = pytest.mark.usefixtures('on_device')

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
        (lambda: DeformableAttention(32, stride=0), r'stride must be at least 1, got 0'),
        (lambda: DeformableAttention(32)(torch.ones(1, 32, 0, 4)), r'x has no pixels, got shape \(1, 32, 0, 4\)'),
        (
            lambda: WindowAttention(32, 4)(torch.ones(1, 16, 9, 9)),
            r'x must have 32 channels, got shape \(1, 16, 9, 9\)',
        ),
        (lambda: NeighborhoodAttention(32, 4)(torch.ones(1, 16, 9, 9)), r'x must have 32 channels'),
        (lambda: NeighborhoodAttention(32, 4)(torch.ones(32, 9, 9)), r'x must be a map \(B, C, H, W\)'),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
