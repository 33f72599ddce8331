"""Which form of an operator runs on a GPU, seen without one through tensors that have no values."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mmengine.utils import digit_version

from mmdat.ops import (
    TableBias,
    budget,
    choose_deformable_attention,
    choose_window_attention,
    deformable_attention,
    implementation,
    window_attention,
)
from mmdat.ops.deformable_attention.interface import held_by_plain_form
from mmdat.ops.triton import availability

ROOT = Path(__file__).parents[1]

fake_tensor = pytest.importorskip('torch._subclasses.fake_tensor')
# PyTorch 2.1 asks the driver when it makes such a tensor.
needs_fakes = pytest.mark.skipif(digit_version(torch.__version__) < digit_version('2.4'), reason='PyTorch before 2.4')


@pytest.fixture
def kernels(monkeypatch):
    """The fused kernels can run, as if there were a GPU and tensors had values."""
    monkeypatch.setattr(availability, '_what_is_missing', lambda device: None)
    monkeypatch.setattr(availability, 'is_watched', lambda: False)


@pytest.fixture
def no_kernels(monkeypatch):
    """They cannot, even if there is a GPU."""
    monkeypatch.setattr(availability, '_what_is_missing', lambda device: 'another GPU')


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
def test_a_gpu_without_kernels_takes_the_plain_form_where_it_fits(
    size, keys, heads, groups, batch, expected, no_kernels
):
    with fake_tensor.FakeTensorMode():
        arguments = layer(size, keys, heads, groups, batch, 'cuda')
        assert choose_deformable_attention(*arguments).implementation == expected
        # The bound decides.
        assert choose_deformable_attention(*arguments, plain_bytes=0).implementation == 'tiled'
        assert choose_deformable_attention(*arguments, plain_bytes=2**50).implementation == 'naive'
        assert choose_deformable_attention(*arguments, impl='tiled').implementation == 'tiled'


@needs_fakes
def test_a_gpu_takes_the_kernels_for_what_they_can(kernels):
    with fake_tensor.FakeTensorMode():
        query, key, value, heads, bias = layer((50, 84), (50, 84), 12, 3, 2, 'cuda')
        assert choose_deformable_attention(query, key, value, heads, bias).implementation == 'triton'
        doubles = query.double(), key.double(), value.double()
        assert choose_deformable_attention(*doubles, heads, bias).implementation != 'triton'
        uneven = replace(bias, evenly_spaced=False)
        assert choose_deformable_attention(query, key, value, heads, uneven).implementation != 'triton'
        assert choose_deformable_attention(query, key, value, heads, bias, 0.1).implementation != 'triton'
        table, square = torch.empty(169, 12, device='cuda'), query[..., :49, :49]
        assert choose_window_attention(square, square, square, table, 12, 7, 4).implementation == 'triton'
        assert choose_window_attention(square, square, square, table, 12, 7, 4, 0.1).implementation == 'naive'


@needs_fakes
def test_a_gpu_takes_no_kernels_where_operations_are_watched(monkeypatch):
    """By counters of operations, say; here by what makes tensors without values."""
    monkeypatch.setattr(availability, '_what_is_missing', lambda device: None)
    with fake_tensor.FakeTensorMode():
        arguments = layer((50, 84), (50, 84), 12, 3, 2, 'cuda')
        assert choose_deformable_attention(*arguments).implementation == 'tiled'


@needs_fakes
def test_a_gpu_takes_tiles_where_algorithms_must_be_deterministic(kernels):
    """PyTorch refuses the plain form's reads of the table then, and the kernels add to it in any order."""
    torch.use_deterministic_algorithms(True)
    try:
        with fake_tensor.FakeTensorMode():
            arguments = layer((14, 14), (14, 14), 12, 3, 2, 'cuda')
            assert choose_deformable_attention(*arguments).implementation == 'tiled'
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_bound_of_the_plain_form_can_be_set(monkeypatch):
    assert budget.bytes_for_plain_form(torch.device('cuda')) == 2**30
    monkeypatch.setattr(budget, '_PLAIN_FROM_ENVIRONMENT', '5000')  # MMDAT_PLAIN_BYTES as it was at the import
    assert budget.bytes_for_plain_form(torch.device('cuda')) == 5000
    assert budget.bytes_for_plain_form(torch.device('cuda'), 7) == 7


def test_the_choice_and_its_reason_are_logged_once(caplog):
    implementation._log_once.cache_clear()
    query = torch.randn(1, 4, 6, 6)
    with caplog.at_level('INFO', 'mmdat'):
        for impl in ('fast', 'fast', 'naive', 'fast'):
            window_attention(query, query, query, torch.randn(25, 2), 2, 3, impl=impl)
    assert [record.getMessage() for record in caplog.records] == [
        'window_attention on cpu runs its tiled form: it holds a part of the windows at a time',
        'window_attention on cpu runs its naive form: it was asked for',
    ]


@needs_fakes
def test_a_gpu_without_kernels_takes_plain_windows(no_kernels):
    with fake_tensor.FakeTensorMode():
        query = torch.empty(2, 96, 56, 56, device='cuda')
        table = torch.empty(169, 3, device='cuda')
        assert choose_window_attention(query, query, query, table, 3, 7, 4).implementation == 'naive'


@pytest.mark.parametrize('batch, expected', [(1, 'naive'), (6, 'naive'), (7, 'tiled')])
def test_a_cpu_takes_the_plain_form_where_it_stays_in_the_caches(batch, expected):
    arguments = layer((14, 14), (14, 14), 12, 3, batch, 'cpu')  # DAT-T, stage 3, 224 pixels
    assert choose_deformable_attention(*arguments).implementation == expected


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


@pytest.fixture(scope='module')
def counted():
    """benchmarks/counted.py, whose neighbours it imports."""
    sys.path.insert(0, str(ROOT / 'benchmarks'))
    try:
        import counted
    finally:
        sys.path.remove(str(ROOT / 'benchmarks'))
    return counted


@needs_fakes
@pytest.mark.parametrize(
    'model',
    [*('tiny', 'tiny++'), *(pytest.param(name, marks=pytest.mark.slow) for name in ('base', 'small++', 'base++'))],
)
def test_the_choice_of_a_gpu_without_kernels_moves_and_launches_least(counted, model, no_kernels):
    """In each layer of a published model, but for those whose plain form holds more than the bound of memory.

    DAT-S has the layers of DAT-T, and DAT+ those of DAT-T++.
    """
    for layer in (layer for size in counted.SIZES for layer in counted.layers(model, size)):
        forms = {impl: counted.count(layer, impl) for impl in ('naive', 'tiled')}
        chosen = counted.chosen(layer)
        fits = forms['naive']['held'] <= budget.PLAIN_BYTES['other']
        if layer.mixer == 'D' and not fits:
            assert chosen == 'tiled', layer
            continue
        other = forms['tiled' if chosen == 'naive' else 'naive']
        assert forms[chosen]['bytes'] < other['bytes'], layer
        # Kernels are more where tiles move less; their launches take a small part of the time saved.
        more = forms[chosen]['kernels'] - other['kernels']
        saved = (other['bytes'] - forms[chosen]['bytes']) / counted.BANDWIDTH
        assert more * counted.LAUNCH < saved / 2, layer


def test_what_the_plain_form_holds_is_known_beforehand(counted):
    for layer in (layer for layer in counted.layers('tiny++', '800x1344') if layer.mixer == 'D'):
        _, maps, _ = counted.operator(layer, 'meta', 'naive')
        bias = TableBias(*maps[3:], *(torch.empty(side, device='meta') for side in layer.size), evenly_spaced=True)
        expected = held_by_plain_form(*maps[:3], layer.heads, bias)
        assert expected == pytest.approx(counted.count(layer, 'naive')['held'], rel=0.1)
