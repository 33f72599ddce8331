"""The fast forms of the operators against their specifications."""

import itertools
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from largest_tensor import LargestTensor
from torch.utils.checkpoint import checkpoint

from mmdat.ops import (
    FixedBias,
    LogBias,
    TableBias,
    deform_sample,
    deformable_attention,
    neighborhood_attention,
    window_attention,
)
from mmdat.ops.budget import scores_at_a_time

pytestmark = pytest.mark.usefixtures('on_device')

DOUBLE = torch.float64


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def sliced(x):
    """The same values as a part of a larger map."""
    return F.pad(x, (1, 2, 2, 1, 1, 3))[:, 1:-3, 2:-1, 1:-2]


def assert_equal(fast, naive, tolerance):
    """Equal, up to the tolerance times the largest value."""
    assert len(fast) == len(naive)
    for a, b in zip(fast, naive):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert torch.isfinite(a).all()
        assert (a - b).abs().max() <= tolerance * max(b.abs().max().item(), 1e-3)


def run(function, inputs, needs=None):
    """The output, and the gradients of those inputs that need one."""
    inputs = [x.detach().requires_grad_(need) for x, need in zip(inputs, needs or [True] * len(inputs))]
    out = function(*inputs)
    # The same numbers on all devices.
    generator = torch.Generator('cpu').manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float32, device='cpu').to(out)
    inputs = [x for x in inputs if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


def axis(size, dtype=DOUBLE):
    return (torch.arange(size, dtype=dtype) + 0.5) / size * 2 - 1


def attention_inputs(batch, heads, groups, size, key_size, table_size, dtype=DOUBLE, dim=4, spread=1.3):
    """Query, key, value, table and positions, some of them outside the map."""
    maps = [torch.randn(batch, heads * dim, *s, dtype=dtype) for s in (size, key_size, key_size)]
    position = (torch.rand(batch, groups, *key_size, 2, dtype=dtype) * 2 - 1) * spread
    return [*maps, torch.randn(heads, *table_size, dtype=dtype), position]


def table_attention(heads, even=True, impl='tiled', **kwargs):

    def attend(query, key, value, table, position):
        axes = [axis(n, position.dtype).to(query.device) for n in query.shape[2:]]
        bias = TableBias(table, position, *axes, evenly_spaced=even)
        return deformable_attention(query, key, value, heads, bias, impl=impl, **kwargs)

    return attend


# batch, heads, groups, queries, keys, table, bytes of scores at a time
TABLE_CASES = [
    (1, 2, 1, (6, 7), (6, 7), (13, 13), 2**20),
    (2, 4, 2, (9, 13), (5, 6), (13, 27), 2**20),
    (2, 4, 2, (9, 13), (5, 6), (13, 27), 700),
    (3, 6, 3, (5, 4), (7, 3), (5, 31), 4000),
    (1, 2, 2, (70, 41), (4, 5), (27, 27), 2**16),
    (2, 1, 1, (1, 1), (1, 1), (1, 1), 2**20),
    (1, 2, 1, (1, 9), (3, 1), (1, 9), 100),
    (1, 3, 3, (2, 37), (3, 2), (4, 111), 1),
]


@pytest.mark.parametrize('even', [True, False])
@pytest.mark.parametrize('batch, heads, groups, size, key_size, table_size, chunk_bytes', TABLE_CASES)
def test_deformable_attention_with_table(batch, heads, groups, size, key_size, table_size, chunk_bytes, even):
    inputs = attention_inputs(batch, heads, groups, size, key_size, table_size)
    fast = run(table_attention(heads, even, chunk_bytes=chunk_bytes), inputs)
    naive = run(table_attention(heads, impl='naive'), inputs)
    assert_equal(fast, naive, 1e-10)


@pytest.mark.parametrize('layout', [channels_last, sliced])
def test_deformable_attention_of_maps_in_any_layout(layout):
    inputs = attention_inputs(2, 4, 2, (9, 13), (5, 6), (13, 27))
    inputs = [layout(x) for x in inputs[:3]] + inputs[3:]
    assert_equal(run(table_attention(4), inputs), run(table_attention(4, impl='naive'), inputs), 1e-10)


def test_deformable_attention_of_random_sizes():
    draw = random.Random(3).randrange
    for _ in range(12):
        groups, per_group = draw(1, 4), draw(1, 4)
        sizes = [(draw(1, 40), draw(1, 40)), (draw(1, 9), draw(1, 9)), (draw(1, 40), draw(1, 40))]
        inputs = attention_inputs(draw(1, 4), groups * per_group, groups, *sizes, dim=draw(1, 6), spread=3)
        heads = groups * per_group
        fast = run(table_attention(heads, chunk_bytes=draw(1, 200000)), inputs)
        assert_equal(fast, run(table_attention(heads, impl='naive'), inputs), 1e-10)


def test_deformable_attention_in_single_precision():
    inputs = attention_inputs(2, 4, 2, (33, 41), (16, 20), (27, 27), torch.float32, dim=16)
    assert_equal(run(table_attention(4), inputs), run(table_attention(4, impl='naive'), inputs), 1e-5)


def test_deformable_attention_with_large_scores():
    """The true maximum is subtracted: neither overflow nor vanishing sums."""
    inputs = attention_inputs(1, 2, 1, (5, 6), (9, 9), (9, 9))
    inputs[0] = inputs[0] * 1000
    fast = run(table_attention(2, chunk_bytes=2000), inputs)
    assert_equal(fast, run(table_attention(2, impl='naive'), inputs), 1e-10)


@pytest.mark.parametrize(
    'needs', [(1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 0), (0, 0, 0, 0, 1), (1, 1, 1, 0, 1)]
)
def test_deformable_attention_when_some_gradients_are_needed(needs):
    needs = [bool(need) for need in needs]
    inputs = attention_inputs(2, 4, 2, (4, 5), (3, 3), (7, 7))
    assert_equal(run(table_attention(4), inputs, needs), run(table_attention(4, impl='naive'), inputs, needs), 1e-10)


def test_deformable_attention_gradcheck():
    inputs = [x.requires_grad_() for x in attention_inputs(2, 2, 1, (2, 3), (2, 2), (5, 7), dim=2)]
    # (On a GPU, sums are not in the same order each time.)
    assert torch.autograd.gradcheck(table_attention(2, chunk_bytes=100), inputs, nondet_tol=1e-12)


def local_attention(operator, heads, size, impl='tiled', **kwargs):
    """Neighbourhood or (shifted) window attention."""
    if operator == 'neighborhood':
        return lambda *args: neighborhood_attention(*args, heads, size, impl=impl, **kwargs)
    return lambda *args: window_attention(*args, heads, size, shift=size // 2 + 1, impl=impl, **kwargs)


def local_inputs(operator, batch, heads, height, width, size, dtype=DOUBLE, dim=2):
    """Query, key, value and table."""
    maps = [torch.randn(batch, heads * dim, height, width, dtype=dtype) for _ in range(3)]
    side = 2 * size - 1
    return [*maps, torch.randn(*((heads, side, side) if operator == 'neighborhood' else (side**2, heads)), dtype=dtype)]


LOCAL = pytest.mark.parametrize('operator', ['neighborhood', 'window'])


@LOCAL
def test_local_attention_gradcheck(operator):
    inputs = [x.requires_grad_() for x in local_inputs(operator, 1, 2, 3, 9, 3, dim=1)]
    assert torch.autograd.gradcheck(local_attention(operator, 2, 3), inputs)


@pytest.mark.parametrize('chunk_bytes', [1, 10000, 2**20])
@pytest.mark.parametrize('size', [(7, 7), (8, 14), (13, 30), (15, 16), (41, 23)])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7])
def test_neighborhood_attention(size, kernel_size, chunk_bytes):
    inputs = [channels_last(torch.randn(2, 6, *size, dtype=DOUBLE)) for _ in range(3)]
    inputs.append(torch.randn(2, 2 * kernel_size - 1, 2 * kernel_size - 1, dtype=DOUBLE))
    attend = lambda *args, **kwargs: neighborhood_attention(*args, 2, kernel_size, **kwargs)  # noqa: E731
    fast = run(partial(attend, impl='tiled', chunk_bytes=chunk_bytes), inputs)
    assert_equal(fast, run(partial(attend, impl='naive'), inputs), 1e-10)


@pytest.mark.parametrize('chunk_bytes', [1, 10000, 2**20])
@pytest.mark.parametrize('size', [(7, 7), (7, 21), (35, 14)])
@pytest.mark.parametrize('shift', [0, 3, 4])
def test_window_attention(size, shift, chunk_bytes):
    inputs = [channels_last(torch.randn(2, 6, *size, dtype=DOUBLE)) for _ in range(3)]
    inputs.append(torch.randn(13**2, 2, dtype=DOUBLE))
    attend = lambda *args, **kwargs: window_attention(*args, 2, 7, shift, **kwargs)  # noqa: E731
    fast = run(partial(attend, impl='tiled', chunk_bytes=chunk_bytes), inputs)
    assert_equal(fast, run(partial(attend, impl='naive'), inputs), 1e-10)


def test_neighborhood_attention_with_a_large_kernel_in_any_layout():
    inputs = [sliced(torch.randn(1, 6, 41, 23, dtype=DOUBLE)) for _ in range(3)]
    inputs.append(torch.randn(3, 25, 25, dtype=DOUBLE))
    attend = lambda **kwargs: lambda *args: neighborhood_attention(*args, 3, 13, **kwargs)  # noqa: E731
    assert_equal(run(attend(impl='tiled'), inputs), run(attend(impl='naive'), inputs), 1e-10)


def test_neighborhood_attention_leaves_its_inputs_alone():
    """Also where a tile is a view of the map: one head, one whole tile."""
    inputs = [channels_last(torch.randn(1, 4, 8, 8, dtype=DOUBLE)) for _ in range(3)]
    inputs.append(torch.randn(1, 5, 5, dtype=DOUBLE))
    before = [x.clone() for x in inputs]
    attend = lambda **kwargs: lambda *args: neighborhood_attention(*args, 1, 3, **kwargs)  # noqa: E731
    assert_equal(run(attend(impl='tiled'), inputs), run(attend(impl='naive'), inputs), 1e-10)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


@LOCAL
def test_local_attention_in_single_precision(operator):
    inputs = local_inputs(operator, 2, 2, 28, 42, 7, torch.float32, dim=16)
    fast, naive = [run(local_attention(operator, 2, 7, impl=impl), inputs) for impl in ('tiled', 'naive')]
    assert_equal(fast, naive, 1e-5)


@LOCAL
def test_local_attention_when_some_gradients_are_needed(operator):
    inputs = local_inputs(operator, 2, 2, 9, 12, 3)
    for i in range(4):
        needs = [i == j for j in range(4)]
        fast, naive = [run(local_attention(operator, 2, 3, impl=impl), inputs, needs) for impl in ('tiled', 'naive')]
        assert_equal(fast, naive, 1e-10)


def other_bias(kind, heads, groups, size, key_size, dtype=DOUBLE):
    if kind == 'none':
        return None
    if kind == 'fixed':
        table = torch.randn(heads, 12, 6, dtype=dtype, requires_grad=True)
        return FixedBias(table, size, key_size[0] * key_size[1])
    weights = [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((8, 2), (8,), (heads // groups, 8))]
    position = torch.rand(2, groups, *key_size, 2, dtype=dtype, requires_grad=True)
    return LogBias(*weights, position, axis(size[0], dtype), axis(size[1], dtype))


@pytest.mark.parametrize('kind', ['log', 'fixed', 'none'])
def test_deformable_attention_with_other_biases(kind):
    inputs = attention_inputs(2, 4, 2, (7, 5), (3, 4), (1, 1))[:3]
    bias = other_bias(kind, 4, 2, (7, 5), (3, 4))
    parts = [x for x in (vars(bias) if bias else {}).values() if isinstance(x, torch.Tensor) and x.requires_grad]

    def attend(impl):
        return lambda query, key, value, *_: deformable_attention(
            query, key, value, 4, bias, impl=impl, chunk_bytes=3000
        )

    results = []
    for impl in ('tiled', 'naive'):
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attend(impl)(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [*leaves, *parts])])
    assert_equal(*results, 1e-10)


@pytest.mark.parametrize('kind', ['table', 'log', 'none'])
def test_deformable_attention_holds_memory_linear_in_the_pixels(kind):
    """Whether in use at a time or kept for the backward pass; the naive form holds all scores."""
    heads, groups, dim = 4, 2, 4
    held, scores = [], []
    for size in ((16, 24), (32, 48)):
        kept = {}
        inputs = attention_inputs(1, heads, groups, size, size, (13, 13), torch.float32, dim)
        bias = None
        if kind == 'log':
            weights = [torch.randn(*shape) for shape in ((4, 2), (4,), (heads // groups, 4))]
            bias = LogBias(*weights, inputs[4], *(axis(n, torch.float32) for n in size))

        def attend(query, key, value, table, position, bias=bias, size=size):
            if kind == 'table':
                bias = TableBias(table, position, *(axis(n, torch.float32) for n in size), evenly_spaced=True)
            return deformable_attention(query, key, value, heads, bias, impl='tiled', chunk_bytes=2**18)

        def keep(x, kept=kept):
            kept[x.data_ptr()] = x.numel()
            return x

        leaves = [x.requires_grad_() for x in inputs]
        with LargestTensor() as largest:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = attend(*leaves)
            out.square().sum().backward()
        held.append((largest.numel, sum(kept.values())))
        scores.append(heads * (size[0] * size[1]) ** 2)
    for small, large in zip(*held):
        assert large <= 4.5 * small  # for four times the pixels
        assert large < scores[1] / 16


def test_log_bias_is_a_network_of_log_spaced_displacements():
    bias = other_bias('log', 4, 2, (3, 2), (2, 2))
    of_some = bias.evaluate(slice(1, 5))
    assert of_some.shape == (2, 4, 4, 4)
    for image, head, query, key in itertools.product(*map(range, of_some.shape)):
        displacement = torch.stack([bias.query_y[(1 + query) // 2], bias.query_x[(1 + query) % 2]])
        displacement = 4 * (displacement - bias.position[image, head // 2, key // 2, key % 2])
        spaced = displacement.sign() * (displacement.abs() + 1).log2() / 3
        expected = bias.weight2[head % 2] @ (bias.weight1 @ spaced + bias.bias1).relu()
        torch.testing.assert_close(of_some[image, head, query, key], expected, rtol=0, atol=1e-12)


def test_fixed_bias_of_some_queries_is_that_of_the_resized_table():
    bias = FixedBias(torch.randn(2, 12, 6, dtype=DOUBLE), (7, 5), 9)
    whole = F.interpolate(bias.table[None], size=(35, 9), mode='bilinear', align_corners=True)
    for queries in (slice(11, 24), slice(20, 35), slice(None)):
        torch.testing.assert_close(bias.evaluate(queries), whole[:, :, queries], rtol=0, atol=1e-12)


@pytest.mark.parametrize('kind', ['table', 'fixed', 'none'])
def test_attention_dropout_is_the_same_in_the_backward_pass(kind):
    """The output is linear in the value: with one mask, gradient times value is the output."""
    inputs = attention_inputs(2, 4, 2, (7, 5), (3, 4), (13, 13))
    value = inputs[2].requires_grad_()
    if kind == 'table':
        bias = TableBias(inputs[3], inputs[4], axis(7), axis(5))
    else:
        bias = other_bias(kind, 4, 2, (7, 5), (3, 4))
    out = deformable_attention(*inputs[:3], 4, bias, dropout=0.5, chunk_bytes=3000)
    assert not torch.allclose(out, deformable_attention(*inputs[:3], 4, bias))
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close((grad * value).sum(), out.sum())


@LOCAL
def test_local_attention_drops(operator):
    inputs = local_inputs(operator, 1, 2, 9, 12, 3, torch.float32)
    kept = local_attention(operator, 2, 3)(*inputs)
    dropped = torch.stack([local_attention(operator, 2, 3, dropout=0.3)(*inputs) for _ in range(300)])
    assert (dropped[0] - kept).abs().max() > 0.1
    assert (dropped.mean(0) - kept).abs().mean() < 0.05


def operator_and_inputs(operator):
    if operator == 'deformable':
        return table_attention(4), attention_inputs(2, 4, 2, (4, 5), (3, 3), (7, 7))
    return local_attention(operator, 2, 3), local_inputs(operator, 2, 2, 9, 12, 3)


OPERATORS = pytest.mark.parametrize('operator', ['deformable', 'neighborhood', 'window'])


@OPERATORS
def test_checkpoint(operator):
    function, inputs = operator_and_inputs(operator)
    again = run(lambda *args: checkpoint(function, *args, use_reentrant=False), inputs)
    assert_equal(again, run(function, inputs), 1e-12)


@OPERATORS
def test_second_derivative_is_refused(operator):
    function, inputs = operator_and_inputs(operator)
    inputs = [x.requires_grad_() for x in inputs]
    grads = torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match=f'{operator}.* no second derivative.*naive'):
        grads[1].sum().backward()


@OPERATORS
def test_plain_form_has_a_second_derivative(operator):
    if operator == 'deformable':
        try:
            torch.autograd.gradgradcheck(
                lambda x: F.grid_sample(x, torch.zeros(1, 1, 1, 2).to(x), align_corners=True),
                torch.randn(1, 1, 2, 2).double().requires_grad_(),
            )
        except RuntimeError:
            pytest.skip('this PyTorch cannot differentiate grid_sample twice here')
        attend, inputs = table_attention(2, impl='naive'), attention_inputs(1, 2, 1, (2, 2), (2, 1), (3, 3), dim=1)
    else:
        attend, inputs = local_attention(operator, 2, 3, impl='naive'), local_inputs(operator, 1, 2, 3, 3, 3, dim=1)
    # Not by the positions: bilinear interpolation has kinks.
    assert torch.autograd.gradgradcheck(attend, [x.requires_grad_(i < 4) for i, x in enumerate(inputs)])


@OPERATORS
def test_plain_form_in_half_precision(operator):
    """Without autocast as well: a bias in float32 does not change what comes out."""
    if operator == 'deformable':
        attend, inputs = table_attention(4, impl='naive'), attention_inputs(2, 4, 2, (5, 6), (3, 3), (9, 9))
    else:
        attend, inputs = local_attention(operator, 2, 3, impl='naive'), local_inputs(operator, 2, 2, 9, 12, 3)
    half = [x.bfloat16() for x in inputs[:3]] + [x.float() for x in inputs[3:]]
    out = attend(*half)
    assert out.dtype == torch.bfloat16
    assert_equal([out.double()], [attend(*inputs)], 0.02)


def test_bfloat16_under_autocast():
    """Products in half precision, the rest in float32: within 2% of the largest value, as bfloat16 has 8 bits."""
    inputs = attention_inputs(2, 4, 2, (20, 21), (10, 11), (27, 27), torch.float32, dim=16)
    half = [x.bfloat16() for x in inputs[:3]] + inputs[3:]
    with torch.autocast(half[0].device.type, torch.bfloat16):
        fast = run(table_attention(4), half)
    naive = run(table_attention(4, impl='naive'), inputs)
    assert [x.dtype for x in fast] == [torch.bfloat16] * 4 + [torch.float32] * 2
    assert_equal([x.float() for x in fast], naive, 0.02)


def test_sums_of_many_parts_in_bfloat16():
    """Sums are float32, so many small parts make hardly a larger error than few large ones."""
    inputs = attention_inputs(1, 2, 1, (128, 128), (12, 12), (27, 27), torch.float32)
    inputs = [x.bfloat16() for x in inputs[:3]] + inputs[3:]
    naive = run(table_attention(2, impl='naive'), [x.float() for x in inputs])
    many = run(table_attention(2, chunk_bytes=4096), inputs)  # 16 tiles of queries, a key at a time
    few = run(table_attention(2), inputs)
    for a, b, exact in zip(many, few, naive):
        assert (a - exact).abs().max() <= 1.4 * (b - exact).abs().max()


@LOCAL
def test_local_attention_bfloat16_under_autocast(operator):
    inputs = local_inputs(operator, 2, 2, 21, 28, 7, torch.float32, dim=16)
    half = [x.bfloat16() for x in inputs[:3]] + inputs[3:]
    with torch.autocast(half[0].device.type, torch.bfloat16):
        fast = run(local_attention(operator, 2, 7), half)
    assert [x.dtype for x in fast] == [torch.bfloat16] * 4 + [torch.float32]
    assert_equal([x.float() for x in fast], run(local_attention(operator, 2, 7, impl='naive'), inputs), 0.02)


@OPERATORS
def test_unknown_implementation_and_budget_are_refused(operator, monkeypatch):

    def attend(**kwargs):
        return table_attention(4, **kwargs) if operator == 'deformable' else local_attention(operator, 2, 3, **kwargs)

    _, inputs = operator_and_inputs(operator)
    with pytest.raises(ValueError, match="impl must be one of .*'quick'"):
        attend(impl='quick')(*inputs)
    with pytest.raises(ValueError, match='chunk_bytes.*-1'):
        attend(chunk_bytes=-1)(*inputs)
    monkeypatch.setattr('mmdat.ops.budget._FROM_ENVIRONMENT', '0')
    with pytest.raises(ValueError, match='MMDAT_CHUNK_BYTES.*0'):
        attend()(*inputs)


@pytest.mark.parametrize('place, mebibytes', [('cpu', 8), ('meta', 320)])
def test_budget_is_that_of_the_device_unless_given(place, mebibytes, monkeypatch):
    device = torch.device(place)
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)):
        assert scores_at_a_time(device, dtype) * size == mebibytes * 2**20
        assert scores_at_a_time(device, dtype, 2**10) * size == 2**10
        assert scores_at_a_time(device, dtype, 1) == 1
    monkeypatch.setattr('mmdat.ops.budget._FROM_ENVIRONMENT', '4096')
    assert scores_at_a_time(device, torch.float32) == 1024


def test_windows_are_not_shifted_unless_asked():
    inputs = local_inputs('window', 1, 2, 6, 9, 3)
    assert torch.equal(window_attention(*inputs, 2, 3), window_attention(*inputs, 2, 3, shift=0))


@pytest.mark.parametrize('groups', [1, 3])
def test_samplers_agree(groups):
    """In values and gradients, also where positions leave the map."""
    x = torch.randn(2, 6, 9, 11)
    position = (torch.rand(2, groups, 5, 4, 2) * 2 - 1) * 1.4
    results = [run(partial(deform_sample, sampler=sampler), [x, position]) for sampler in ('torch', 'mmcv')]
    assert_equal(*results, 1e-6)
    assert torch.equal(deform_sample(x, position), results[0][0])


@pytest.mark.parametrize('sampler', ['torch', 'mmcv'])
def test_samples_of_maps_in_half_precision(sampler):
    x = torch.randn(2, 6, 9, 11).bfloat16()
    position = torch.rand(2, 3, 5, 4, 2) * 2 - 1
    sampled = deform_sample(x, position, sampler)
    assert torch.equal(sampled, deform_sample(x.float(), position, sampler).bfloat16())


def test_sampling_what_does_not_go_together_is_refused():
    x, position = torch.randn(1, 6, 4, 4), torch.zeros(1, 4, 2, 2, 2)
    with pytest.raises(ValueError, match='4 position groups do not divide the 6 channels'):
        deform_sample(x, position)
    with pytest.raises(ValueError, match="sampler must be one of .*'numpy'"):
        deform_sample(x, position[:, :3], 'numpy')
