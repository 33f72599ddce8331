"""Inputs of the operators that are wrong, empty or not finite: the right answer, or one sentence."""

from dataclasses import replace

import pytest
import torch
from conftest import DEVICE

from mmdat.ops import (
    FixedBias,
    LogBias,
    TableBias,
    deform_sample,
    deformable_attention,
    neighborhood_attention,
    window_attention,
)

pytestmark = pytest.mark.usefixtures('on_device')

IMPL = pytest.mark.parametrize('impl', ['fast', 'tiled', 'naive'])


def axis(size):
    return (torch.arange(size) + 0.5) / size * 2 - 1


def maps(*sizes, batch=2, channels=8):
    return [torch.randn(batch, channels, *size) for size in sizes]


def table_bias(size=(6, 7), key_size=(3, 4), batch=2, heads=4, groups=2, table=(7, 9), axes=None):
    position = torch.rand(batch, groups, *key_size, 2) * 2 - 1
    return TableBias(torch.randn(heads, *table), position, *map(axis, axes or size), evenly_spaced=True)


def log_bias(size=(6, 7), key_size=(3, 4), batch=2, per_group=2, groups=2):
    weights = [torch.randn(*shape) for shape in ((8, 2), (8,), (per_group, 8))]
    return LogBias(*weights, torch.rand(batch, groups, *key_size, 2), *map(axis, size))


def fixed_bias(size=(6, 7), num_keys=12, heads=4):
    return FixedBias(torch.randn(heads, 10, 6), size, num_keys)


def attend(bias, impl, sizes=((6, 7), (3, 4), (3, 4)), batch=2, heads=4):
    return deformable_attention(*maps(*sizes, batch=batch), heads, bias, impl=impl)


def neighborhood(impl='fast', size=(9, 8), heads=2, kernel=3, table=(2, 5, 5)):
    return neighborhood_attention(*maps(*[size] * 3), torch.randn(*table), heads, kernel, impl=impl)


def windows(impl='fast', size=(9, 6), heads=2, window=3, shift=0, table=(25, 2)):
    return window_attention(*maps(*[size] * 3), torch.randn(*table), heads, window, shift, impl=impl)


def nowhere(*size):
    return torch.empty(size, device='meta')


def elsewhere(bias):
    """The bias, with its positions in another memory."""
    return replace(bias, position=bias.position.to('meta'))


def different_batches(impl, operator):
    query, key = *maps((6, 6), batch=2), *maps((6, 6), batch=3)
    return operator(query, key, key, impl)


def different_channels(impl, operator):
    query, key = *maps((6, 6)), *maps((6, 6), channels=4)
    return operator(query, key, key, impl)


def different_values(impl, operator):
    query, value = *maps((6, 6)), *maps((6, 5))
    return operator(query, query, value, impl)


def no_map(impl, operator):
    return operator(*[torch.randn(6, 6)] * 3, impl)


def integers(impl, operator):
    return operator(*[torch.ones(1, 8, 6, 6, dtype=torch.long)] * 3, impl)


def mixed_precision(impl, operator):
    query, key, value = maps(*[(6, 6)] * 3)
    return operator(query, key.double(), value, impl)


OPERATORS = {
    'deformable': lambda q, k, v, impl: deformable_attention(q, k, v, 2, None, impl=impl),
    'neighborhood': lambda q, k, v, impl: neighborhood_attention(q, k, v, torch.randn(2, 5, 5), 2, 3, impl=impl),
    'window': lambda q, k, v, impl: window_attention(q, k, v, torch.randn(25, 2), 2, 3, impl=impl),
}


@IMPL
@pytest.mark.parametrize('operator', OPERATORS)
@pytest.mark.parametrize(
    'call, message',
    [
        (different_batches, 'same batch and channels'),
        (different_channels, 'same batch and channels'),
        (different_values, 'key and value must have the same shape'),
        (no_map, r'query must be a map \(B, C, H, W\).*, got shape \(6, 6\)'),
        (integers, 'query must hold floating-point numbers, got torch.int64'),
        (mixed_precision, 'must have one dtype'),
    ],
)
def test_maps_that_do_not_go_together_are_refused(operator, call, message, impl):
    with pytest.raises(ValueError, match=message):
        call(impl, OPERATORS[operator])


@IMPL
@pytest.mark.parametrize(
    'call, message',
    [
        (lambda impl: attend(None, impl, heads=3), 'num_heads=3 does not divide the 8 channels'),
        (lambda impl: attend(None, impl, heads=0), 'num_heads=0 does not divide'),
        (lambda impl: attend(table_bias(batch=3), impl), 'positions of 3 images do not go with a batch of 2'),
        (lambda impl: attend(log_bias(batch=3), impl), 'positions of 3 images do not go with a batch of 2'),
        (lambda impl: attend(table_bias(groups=3), impl), '3 groups of positions do not divide num_heads=4'),
        (lambda impl: attend(table_bias(heads=2), impl), r'TableBias must be \(4, rows, columns\).*got \(2, 7, 9\)'),
        (lambda impl: attend(table_bias(table=(7,)), impl), r'TableBias must be \(4, rows, columns\)'),
        (lambda impl: attend(table_bias(table=(0, 3)), impl), r'TableBias must be \(4, rows, columns\)'),
        (lambda impl: attend(table_bias(key_size=(4, 3)), impl), r'position for each key: positions are \(4, 3\)'),
        (lambda impl: attend(table_bias(axes=(7, 6)), impl), r'query_y must be \(6,\)'),
        (lambda impl: attend(table_bias(axes=(6, 1)), impl), r'query_x must be \(7,\)'),
        (lambda impl: attend(log_bias(per_group=4), impl), r'\(2, hidden\) for 4 heads in 2 groups'),
        (lambda impl: attend(fixed_bias(heads=2), impl), r'FixedBias must be \(4, queries, keys\)'),
        (lambda impl: attend(fixed_bias(num_keys=9), impl), r'FixedBias is for \(6, 7\) queries and 9 keys'),
        (lambda impl: attend(fixed_bias(size=(7, 6)), impl), r'FixedBias is for \(7, 6\) queries'),
        (lambda impl: attend(torch.randn(42, 12), impl), 'bias must be TableBias, LogBias, FixedBias or None, got Ten'),
        (
            lambda impl: attend(elsewhere(table_bias()), impl),
            r'position is on meta, but must be where the maps are, on',
        ),
        (lambda impl: attend(elsewhere(log_bias()), impl), 'position is on meta, but must be'),
        (
            lambda impl: neighborhood_attention(*maps(*[(9, 9)] * 3), nowhere(2, 5, 5), 2, 3, impl=impl),
            'bias_table is on meta, but must be where the maps are',
        ),
        (
            lambda impl: window_attention(*maps(*[(9, 9)] * 3), nowhere(25, 2), 2, 3, impl=impl),
            'bias_table is on meta, but must be where the maps are',
        ),
        (lambda impl: OPERATORS['window'](*maps((6, 6)), *[nowhere(2, 8, 6, 6)] * 2, impl), 'key is on meta'),
        (lambda impl: neighborhood(impl, kernel=4, table=(2, 7, 7)), 'kernel_size must be odd and positive, got 4'),
        (lambda impl: neighborhood(impl, kernel=0), 'kernel_size must be odd and positive, got 0'),
        (lambda impl: neighborhood(impl, (9, 2)), '9x2 is smaller than kernel_size=3: pad it'),
        (lambda impl: neighborhood(impl, table=(2, 7, 7)), r'bias_table must be \(2, 5, 5\)'),
        (lambda impl: neighborhood(impl, table=(1, 5, 5)), r'bias_table must be \(2, 5, 5\)'),
        (lambda impl: neighborhood(impl, heads=3, table=(3, 5, 5)), 'num_heads=3 does not divide'),
        (lambda impl: windows(impl, (9, 7)), 'window_size=3 does not divide the sides of a map of 9x7: pad it'),
        (lambda impl: windows(impl, window=0), 'window_size=0 does not divide'),
        (lambda impl: windows(impl, shift=3), 'shift must be at least 0 and less than window_size=3, got 3'),
        (lambda impl: windows(impl, shift=-1), 'shift must be at least 0'),
        (lambda impl: windows(impl, table=(24, 2)), r'bias_table must be \(25, 2\)'),
        (lambda impl: windows(impl, table=(25, 1)), r'bias_table must be \(25, 2\)'),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(call, message, impl):
    with pytest.raises(ValueError, match=message):
        call(impl)


@pytest.mark.parametrize(
    'size, position_size, message',
    [
        ((4, 4), (1, 2, 3, 3, 2), r'x must be a map'),
        ((8, 4, 4), (1, 2, 3, 3, 2), r'position must be \(B, G, Lk, 1\)'),
        ((2, 8, 4, 4, 4), (2, 2, 3, 3, 2), r'position must be \(B, G, Dk, Hk, Wk, 3\)'),
        ((2, 8, 4, 4), (3, 2, 3, 3, 2), 'positions of 3 images do not go with a batch of 2'),
        ((2, 8, 4, 4), (2, 2, 3, 3), r'position must be \(B, G, Hk, Wk, 2\)'),
        ((2, 8, 4, 4), (2, 2, 3, 3, 3), r'position must be \(B, G, Hk, Wk, 2\)'),
        ((2, 8, 0, 4), (2, 2, 3, 3, 2), r'x has no pixels to sample, got shape \(2, 8, 0, 4\)'),
    ],
)
def test_samples_of_what_does_not_go_together_are_refused(size, position_size, message):
    with pytest.raises(ValueError, match=message):
        deform_sample(torch.randn(size), torch.zeros(position_size))


@pytest.mark.parametrize('make', [table_bias, log_bias])
def test_positions_of_one_image_serve_a_batch(make):
    inputs, bias = maps((6, 7), (3, 4), (3, 4)), make(batch=1)
    bias.position.requires_grad_()
    results = []
    for impl in ('naive', 'fast', 'tiled'):
        out = deformable_attention(*inputs, 4, bias, impl=impl)
        results.append((out, *torch.autograd.grad(out.square().sum(), bias.position)))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    x = inputs[0]
    torch.testing.assert_close(
        deform_sample(x, bias.position), deform_sample(x, bias.position.expand(2, -1, -1, -1, -1))
    )


@IMPL
@pytest.mark.parametrize('batch, key_size', [(0, (3, 4)), (2, (0, 0)), (2, (3, 0))])
@pytest.mark.parametrize('kind', ['table', 'log', 'fixed', 'none'])
def test_no_images_and_no_keys(kind, batch, key_size, impl):
    """Zeros, as sums of nothing are, and gradients of zero."""
    bias = {
        'table': lambda: table_bias(key_size=key_size, batch=batch),
        'log': lambda: log_bias(key_size=key_size, batch=batch),
        'fixed': lambda: fixed_bias(num_keys=key_size[0] * key_size[1]),
        'none': lambda: None,
    }[kind]()
    inputs = [x.requires_grad_() for x in maps((6, 7), key_size, key_size, batch=batch)]
    out = deformable_attention(*inputs, 4, bias, impl=impl)
    assert out.shape == inputs[0].shape and not out.any()
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(grad.shape == x.shape and not grad.any() for grad, x in zip(grads, inputs))
    if kind == 'table':
        assert deform_sample(inputs[0], bias.position).shape == (batch, 8, *key_size)


@IMPL
@pytest.mark.parametrize('operator', ['neighborhood', 'window'])
def test_no_images_of_local_attention(operator, impl):
    inputs = [torch.zeros(0, 8, 9, 9, requires_grad=True) for _ in range(3)]
    out = OPERATORS[operator](*inputs, impl)
    assert out.shape == (0, 8, 9, 9)
    assert [grad.shape for grad in torch.autograd.grad(out.sum(), inputs)] == [out.shape] * 3


#: As a user calls it, or compiled.
CALLED = pytest.mark.parametrize(
    'called',
    [
        lambda operator: operator,
        pytest.param(
            lambda operator: torch.compile(operator, backend='aot_eager', fullgraph=True),
            marks=pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='operators need torch 2.4'),
        ),
    ],
    ids=['eager', 'compiled'],
)

#: The fast forms look at values only where that makes nobody wait.
LOOKS_AT_VALUES = pytest.mark.skipif(DEVICE.type != 'cpu', reason='values on other devices are not looked at')


def same_numbers(fast, naive):
    """Equal where finite; NaN and infinity at the same places."""
    for a, b in zip(fast, naive):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, equal_nan=True)


@LOOKS_AT_VALUES
@CALLED
@pytest.mark.parametrize('number', [float('inf'), float('-inf'), float('nan')])
@pytest.mark.parametrize('which', range(3))
def test_neighborhood_attention_keeps_what_is_not_finite_where_it_belongs(which, number, called):
    """One number that is not finite in query, key or value, and the gradients that follow."""
    inputs = [x.requires_grad_() for x in maps(*[(20, 19)] * 3)]
    with torch.no_grad():
        inputs[which][1, 3, 9, 8] = number
    table = torch.randn(2, 9, 9, requires_grad=True)
    results = []
    for impl, attend in (('fast', called(neighborhood_attention)), ('naive', neighborhood_attention)):
        out = attend(*inputs, table, 2, 5, impl=impl)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), [*inputs, table])))
    same_numbers(*results)
    out, *_ = results[0]
    assert out[0].isfinite().all() and out[1].isfinite().all(0).sum() >= 20 * 19 - 25


@pytest.mark.parametrize('shift', [0, 4])
@pytest.mark.parametrize('number', [float('inf'), float('nan')])
def test_window_attention_keeps_what_is_not_finite_in_its_window(number, shift):
    inputs = maps(*[(14, 21)] * 3)
    inputs[2][1, 3, 9, 8] = number
    table = torch.randn(169, 2)
    fast, naive = [window_attention(*inputs, table, 2, 7, shift, impl=impl) for impl in ('fast', 'naive')]
    same_numbers([fast], [naive])
    assert fast.isfinite().sum() >= fast.numel() - 49


@LOOKS_AT_VALUES
@CALLED
@pytest.mark.parametrize('number', [float('inf'), float('-inf'), float('nan')])
@pytest.mark.parametrize('which', ['query', 'key', 'value', 'table', 'position'])
def test_deformable_attention_keeps_what_is_not_finite_where_it_belongs(which, number, called):
    query, key, value = maps((9, 10), (4, 4), (4, 4))
    bias = table_bias((9, 10), (4, 4), table=(17, 19))
    named = dict(query=query, key=key, value=value, table=bias.table, position=bias.position)
    named[which].flatten()[7] = number
    leaves = [x.requires_grad_() for x in named.values()]
    results = []
    for impl, attend in (('fast', called(deformable_attention)), ('naive', deformable_attention)):
        out = attend(query, key, value, 4, bias, impl=impl)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), leaves)))
    same_numbers(*results)


@pytest.mark.parametrize('meta', [False, True])
def test_a_position_that_is_nowhere_does_not_end_the_tiles(meta):
    """Also where nobody looks at the values before: tiles read the table somewhere, and their weights are NaN."""
    from mmdat.ops.deformable_attention import tiled

    bias = table_bias()
    bias.position[0, 0, 1, 1] = float('nan')
    inputs = [*maps((6, 7), (3, 4), (3, 4)), bias.table, bias.position, bias.query_y, bias.query_x]
    out, _ = tiled.forward(*(x.to('meta') if meta else x for x in inputs), True, 4, 1000)
    assert out.shape == (2, 8, 6, 7)
    if not meta:
        assert out[0, :4].isnan().all() and out[0, 4:].isfinite().all() and out[1].isfinite().all()


def test_shifted_windows_with_scores_far_apart():
    """The mask of -100 is the official one, also where scores differ by more than that."""
    inputs = [x.double().requires_grad_() for x in maps(*[(14, 21)] * 3, channels=16)]
    table = torch.randn(169, 2, dtype=torch.float64, requires_grad=True)
    results = []
    for impl in ('fast', 'tiled', 'naive'):
        out = window_attention(inputs[0] * 10, inputs[1] * 10, inputs[2], table, 2, 7, 4, impl=impl)
        results.append((out, *torch.autograd.grad(out.square().sum(), [*inputs, table])))
    for other in results[:2]:
        for a, b in zip(other, results[2]):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_former_name_of_evenly_spaced():
    bias = table_bias()
    with pytest.warns(DeprecationWarning, match='evenly_spaced'):
        former = TableBias(bias.table, bias.position, bias.query_y, bias.query_x, even=True)
    assert former.evenly_spaced
