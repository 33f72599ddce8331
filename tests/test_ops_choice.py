"""Which form of an operator runs on a GPU, seen without one through tensors that have no values."""

import pytest
import torch
from mmengine.utils import digit_version

from mmdat.ops import TableBias, choose_deformable_attention, choose_window_attention, deformable_attention

fake_tensor = pytest.importorskip('torch._subclasses.fake_tensor')
# PyTorch 2.1 asks the driver when it makes such a tensor.
needs_fakes = pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.4'), reason='PyTorch before 2.4')


def layer(size, keys, heads, groups, batch, device):
    """Arguments of deformable attention as a published layer gives them."""
    query = torch.empty(batch, 32 * heads, *size, device=device)
    key = torch.empty(batch, 32 * heads, *keys, device=device)
    table = torch.empty(heads, 2 * size[0] - 1, 2 * size[1] - 1, device=device)
    axes = [torch.empty(side, device=device) for side in size]
    bias = TableBias(table, torch.empty(batch, groups, *keys, 2, device=device), *axes, evenly_spaced=True)
    return query, key, key, heads, bias


@needs_fakes
@pytest.mark.parametrize(
    'size, keys, heads, groups, batch, expected',
    [
        ((14, 14), (14, 14), 12, 3, 128, 'naive'),  # DAT-T, stage 3, 224 pixels
        ((7, 7), (7, 7), 24, 6, 128, 'naive'),  # DAT-T, stage 4, 224 pixels
        ((50, 84), (50, 84), 12, 3, 2, 'tiled'),  # DAT-T, stage 3, 800x1344 pixels
    ],
)
def test_a_gpu_takes_the_plain_form_where_it_fits(size, keys, heads, groups, batch, expected):
    with fake_tensor.FakeTensorMode():
        arguments = layer(size, keys, heads, groups, batch, 'cuda')
        assert choose_deformable_attention(*arguments).implementation == expected
        # The bound decides.
        assert choose_deformable_attention(*arguments, plain_bytes=0).implementation == 'tiled'
        assert choose_deformable_attention(*arguments, plain_bytes=2**50).implementation == 'naive'
        assert choose_deformable_attention(*arguments, impl='tiled').implementation == 'tiled'


@needs_fakes
def test_a_gpu_takes_plain_windows():
    with fake_tensor.FakeTensorMode():
        query = torch.empty(2, 96, 56, 56, device='cuda')
        table = torch.empty(169, 3, device='cuda')
        assert choose_window_attention(query, query, query, table, 3, 7, 4).implementation == 'naive'


def test_a_cpu_takes_tiles():
    arguments = layer((6, 7), (6, 7), 2, 1, 1, 'cpu')
    assert choose_deformable_attention(*arguments).implementation == 'tiled'


def test_both_forms_agree_where_either_can_be_chosen():
    query, key, value, heads, bias = [
        torch.randn_like(x) if isinstance(x, torch.Tensor) else x for x in layer((6, 7), (6, 7), 2, 1, 2, 'cpu')
    ]
    bias = TableBias(
        torch.randn(2, 11, 13),
        torch.rand(2, 1, 6, 7, 2) * 2 - 1,
        torch.linspace(-1, 1, 6),
        torch.linspace(-1, 1, 7),
        evenly_spaced=True,
    )
    forms = [deformable_attention(query, key, value, heads, bias, plain_bytes=bound) for bound in (0, 2**30)]
    torch.testing.assert_close(*forms)
