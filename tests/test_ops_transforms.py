"""The operators under torch.func and torch.jit.trace."""

import pytest
import torch

from mmdat import DAT, DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention
from mmdat.ops import FixedBias, LogBias, TableBias, deformable_attention, neighborhood_attention, window_attention

pytestmark = pytest.mark.usefixtures('on_device')

DOUBLE = torch.float64


def axis(size):
    return (torch.arange(size, dtype=DOUBLE) + 0.5) / size * 2 - 1


def table(impl):
    def attend(query, key, value, table, position):
        bias = TableBias(table, position, axis(4), axis(5), evenly_spaced=True)
        return deformable_attention(query, key, value, 2, bias, impl=impl, chunk_bytes=5000)

    return attend, [(2, 4, 4, 5), (2, 4, 3, 2), (2, 4, 3, 2), (2, 7, 9), (2, 1, 3, 2, 2)]


def log(impl):
    def attend(query, key, value, *weights_and_position):
        bias = LogBias(*weights_and_position, axis(4), axis(5))
        return deformable_attention(query, key, value, 2, bias, impl=impl, chunk_bytes=2000)

    return attend, [(2, 4, 4, 5), (2, 4, 3, 2), (2, 4, 3, 2), (3, 2), (3,), (2, 3), (2, 1, 3, 2, 2)]


def fixed(impl):
    def attend(query, key, value, table):
        return deformable_attention(query, key, value, 2, FixedBias(table, (4, 5), 6), impl=impl, chunk_bytes=2000)

    return attend, [(2, 4, 4, 5), (2, 4, 3, 2), (2, 4, 3, 2), (2, 7, 3)]


def neighborhood(impl):
    return lambda *args: neighborhood_attention(*args, 2, 3, impl=impl), [*[(1, 4, 9, 8)] * 3, (2, 5, 5)]


def windows(impl):
    return lambda *args: window_attention(*args, 2, 3, 2, impl=impl), [*[(1, 4, 6, 9)] * 3, (25, 2)]


FORMS = pytest.mark.parametrize('form', [table, log, fixed, neighborhood, windows], ids=lambda form: form.__name__)


def forms(form, batch=()):
    """The tiled and the plain form, and inputs."""
    tiled, shapes = form('tiled')
    naive, _ = form('naive')
    return tiled, naive, [torch.randn(*batch, *shape, dtype=DOUBLE) for shape in shapes]


def assert_same(some, others):
    for a, b in zip(some, others):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def squares(function):
    return lambda *inputs: function(*inputs).square().sum()


@FORMS
def test_grad_and_vjp(form):
    tiled, naive, inputs = forms(form)
    places = tuple(range(len(inputs)))
    assert_same(*(torch.func.grad(squares(f), places)(*inputs) for f in (tiled, naive)))
    (out, pull), (other, pull_other) = [torch.func.vjp(f, *inputs) for f in (tiled, naive)]
    grad = torch.randn_like(out)
    assert_same([out, *pull(grad)], [other, *pull_other(grad)])


@FORMS
def test_vmap(form):
    """Over all inputs, over one, and gradients of each sample."""
    tiled, naive, inputs = forms(form, batch=(3,))
    assert_same([torch.vmap(tiled)(*inputs)], [torch.stack([naive(*x) for x in zip(*inputs)])])
    _, *others = [x[0] for x in inputs]
    in_dims = (0, *(None for _ in others))
    assert_same([torch.vmap(tiled, in_dims)(inputs[0], *others)], [torch.stack([naive(q, *others) for q in inputs[0]])])
    places = tuple(range(len(inputs)))
    some = torch.vmap(torch.func.grad(squares(tiled), places))(*inputs)
    single = [torch.func.grad(squares(naive), places)(*x) for x in zip(*inputs)]
    assert_same(some, [torch.stack(x) for x in zip(*single)])


@FORMS
def test_what_has_no_derivative_is_refused(form):
    tiled, _, inputs = forms(form)
    with pytest.raises(RuntimeError, match="no forward-mode derivative: use impl='naive' .attn_impl='naive'"):
        torch.func.jvp(tiled, tuple(inputs), tuple(inputs))
    with pytest.raises(RuntimeError, match="no second derivative: use impl='naive' .attn_impl='naive'"):
        torch.func.grad(lambda x: torch.func.grad(lambda x: tiled(x, *inputs[1:]).sum())(x).sum())(inputs[0])
    with pytest.raises(RuntimeError, match="no second derivative: use impl='naive' .attn_impl='naive'"):
        leaves = [x.requires_grad_() for x in inputs]
        grads = torch.autograd.grad(tiled(*leaves).sum(), leaves, create_graph=True)
        grads[0].sum().backward()


MIXERS = {
    **{
        f'{convention}, {bias}': lambda convention=convention, bias=bias, **options: DeformableAttention(
            8, 4, 2, (5, 6), 3, 2, None, convention, bias, **options
        )
        for convention in ('dat', 'dat++')
        for bias in ('table', 'log', 'fixed', 'none')
    },
    'offsets with a range': lambda **options: DeformableAttention(8, 4, 2, (5, 6), 3, 2, 2.0, **options),
    'pooled': lambda **options: DeformableAttention(8, 4, 2, (5, 6), 3, 2, use_offsets=False, **options),
    'unpadded kernel': lambda **options: DeformableAttention(8, 4, 2, (5, 6), 2, 2, **options),
    'neighborhood': lambda **options: NeighborhoodAttention(8, 4, 5, **options),
    'shifted windows': lambda **options: ShiftedWindowAttention(8, 4, 4, **options),
}


def assert_traces(model, example, others):
    """The traced program is right for other sizes, smaller and larger ones."""
    with torch.no_grad():
        traced = torch.jit.trace(model, example, check_trace=False)
        for x in (example, *others):
            outs, expected = traced(x), model(x)
            for out, other in zip(*[y if isinstance(y, tuple) else (y,) for y in (outs, expected)]):
                torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')  # that tracing is old, and that it cannot see conditions
@pytest.mark.parametrize('impl', ['fast', 'tiled', 'naive'])
@pytest.mark.parametrize('mixer', MIXERS)
def test_traced_mixers(mixer, impl):
    layer = MIXERS[mixer](impl=impl).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert_traces(layer, torch.randn(1, 8, 9, 12), [torch.randn(2, 8, 16, 7), torch.randn(3, 8, 3, 1)])


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('impl', ['fast', 'naive'])
def test_traced_backbone(nano, impl):
    model = DAT(nano, img_size=64, attn_impl=impl).eval()
    assert_traces(model, torch.randn(1, 3, 64, 96), [torch.randn(2, 3, 70, 130)])
