"""The operators and backbones on the meta device, compiled and exported."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdat import DAT
from mmdat.ops import TableBias, deformable_attention, neighborhood_attention, window_attention

pytestmark = pytest.mark.usefixtures('on_device')

RECENT = hasattr(torch.library, 'opcheck')  # torch 2.4 or later
ARCHS = ('tiny', 'small', 'base', 'tiny++', 'small++', 'base++')


@pytest.mark.parametrize('attn_impl', ['fast', 'naive'])
@pytest.mark.parametrize('arch', ARCHS)
def test_forward_and_backward_on_the_meta_device(arch, attn_impl):
    """No tensor is made on the CPU and no value is read by the host, which would make a GPU wait."""
    if attn_impl == 'naive' and 'tiny' not in arch:
        pytest.skip('the naive form is the same for all sizes')
    with torch.device('meta'):
        model = DAT(arch, drop_path_rate=0.2, attn_impl=attn_impl)
        x = torch.randn(1, 3, 800, 1344, requires_grad=True)
    outs = model(x)
    assert [tuple(out.shape[2:]) for out in outs] == [(200, 336), (100, 168), (50, 84), (25, 42)]
    sum(out.sum() for out in outs).backward()
    assert x.grad.device.type == 'meta'
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


class CountCalls(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('arch', ['tiny', 'tiny++'])
def test_few_calls_on_devices_where_each_is_a_launch(arch):
    """With the budget of such devices, the fast form takes less than 1.55 times the calls of the naive one."""
    calls = {}
    for attn_impl in ('fast', 'naive'):
        with torch.device('meta'):
            model = DAT(arch, attn_impl=attn_impl).eval()
            x = torch.randn(1, 3, 800, 1344)
        with CountCalls() as counter, torch.no_grad():
            model(x)
        calls[attn_impl] = counter.count
    assert calls['fast'] < 1.55 * calls['naive']


@pytest.mark.skipif(not RECENT, reason='torch.compile of torch 2.1 makes NaN of the whole backbone')
@pytest.mark.parametrize('training', [False, True])
def test_compiled_backbone(nano, training):
    """Without graph breaks, the same outputs and gradients."""
    model = DAT(nano, img_size=64).eval()
    x = torch.randn(1, 3, 70, 96)
    torch.compiler.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    with torch.set_grad_enabled(training):
        outs, expected = compiled(x), model(x)
    for out, other in zip(outs, expected):
        torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)
    if training:
        parameters = list(model.parameters())
        losses = [sum(out.square().sum() for out in some) for some in (outs, expected)]
        grads, others = [torch.autograd.grad(loss, parameters) for loss in losses]
        for grad, other in zip(grads, others):
            assert (grad - other).abs().max() <= 1e-4 * other.abs().max().clamp(min=1)


@pytest.mark.skipif(not RECENT, reason='torch.export of operators needs torch 2.4')
def test_exported_backbone(nano):
    model = DAT(nano, img_size=64).eval()
    program = torch.export.export(model, (torch.randn(1, 3, 64, 96),))
    x = torch.randn(1, 3, 64, 96)
    for out, other in zip(program.module()(x), model(x)):
        torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    not hasattr(getattr(torch.export, 'Dim', None), 'DYNAMIC'), reason='Dim.DYNAMIC came with torch 2.6'
)
@pytest.mark.slow
def test_exported_backbone_for_any_size(nano):
    """One program for sizes that windows pad and that they do not, larger and smaller than the example."""
    model = DAT(nano, img_size=64).eval()
    dynamic = torch.export.Dim.DYNAMIC
    sizes = {0: dynamic, 2: dynamic, 3: dynamic}
    program = torch.export.export(model, (torch.randn(2, 3, 256, 256),), dynamic_shapes=(sizes,), strict=False).module()
    for shape in [(2, 3, 224, 224), (1, 3, 64, 64), (1, 3, 300, 70), (3, 3, 97, 448)]:
        x = torch.randn(shape)
        with torch.no_grad():
            for out, other in zip(program(x), model(x)):
                torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)


def operator_inputs(kind, mixed=False):
    """Tensors that may need a gradient, and the other arguments of the operator as torch.compile calls it.

    Mixed, all but the positions are bfloat16, maps are channels-last, and tables have the heads last in memory.
    """
    layout, dtype = (torch.channels_last, torch.bfloat16) if mixed else (torch.contiguous_format, torch.float32)
    sizes = ((5, 6), (3, 4), (3, 4)) if kind == 'deformable' else ((9, 12),) * 3
    maps = [torch.randn(2, 8, *size).to(dtype, memory_format=layout) for size in sizes]
    table = torch.randn(2, 5, 5) if kind != 'deformable' else torch.randn(4, 7, 7, dtype=dtype)
    if mixed:
        table = table.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    if kind != 'deformable':
        return [*maps, table], (2, kind.split()[-1], 3, 2 if kind == 'shifted window' else 0, 1000)
    position = torch.rand(4, 2, 3, 4).to(memory_format=layout).permute(0, 2, 3, 1).unflatten(0, (2, 2)) * 2 - 1
    axes = torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 6)
    return [*maps, table, position], (*axes, True, 4, 1000)


def call_operator(kind, inputs, options):
    if kind == 'deformable':
        return torch.ops.mmdat.deformable_attention(*inputs, *options)[0]
    return torch.ops.mmdat.local_attention(*inputs, *options)


def call_public(kind, inputs, options):
    query, key, value, table, *position = inputs
    if kind == 'deformable':
        return deformable_attention(query, key, value, 4, TableBias(table, *position, *options[:3]), impl='tiled')
    if kind == 'neighborhood':
        return neighborhood_attention(query, key, value, table, 2, 3, impl='tiled')
    return window_attention(query, key, value, table.flip(1, 2).flatten(1).t(), 2, 3, options[3], impl='tiled')


KINDS = pytest.mark.parametrize('kind', ['deformable', 'neighborhood', 'shifted window'])


@pytest.mark.skipif(not RECENT, reason='torch.compile needs torch 2.4')
@KINDS
def test_operators_for_the_compiler_equal_the_public_functions(kind):
    """Outputs and gradients, whichever are needed."""
    inputs, options = operator_inputs(kind)
    for needed in [range(len(inputs)), *([i] for i in range(len(inputs)))]:
        results = []
        for call in (call_operator, call_public):
            leaves = [x.detach().requires_grad_(i in needed) for i, x in enumerate(inputs)]
            out = call(kind, leaves, options)
            results.append([out, *torch.autograd.grad(out.square().sum(), [leaves[i] for i in needed])])
        for operator, public in zip(*results):
            torch.testing.assert_close(operator, public)


@pytest.mark.skipif(not RECENT, reason='torch.library.opcheck came with torch 2.4')
@pytest.mark.parametrize('mixed', [False, True])
@KINDS
def test_operators_do_what_their_declarations_say(kind, mixed):
    """All of opcheck: forwards and backwards, whichever gradients are needed, in the layout of what is returned too."""
    inputs, options = operator_inputs(kind, mixed)
    forward = getattr(torch.ops.mmdat, 'deformable_attention' if kind == 'deformable' else 'local_attention').default
    backward = getattr(
        torch.ops.mmdat, f'{"deformable" if kind == "deformable" else "local"}_attention_backward'
    ).default
    outs = forward(*inputs, *options)
    outs = outs if kind == 'deformable' else (outs,)
    for needed in (range(len(inputs)), *([] if mixed else [[0], [3], [len(inputs) - 1]])):
        leaves = [x.detach().requires_grad_(i in needed) for i, x in enumerate(inputs)]
        torch.library.opcheck(forward, (*leaves, *options))
        needs = [i in needed for i in range(len(inputs) + len(options))]
        torch.library.opcheck(backward, (needs, torch.ones_like(outs[0]), *outs, *inputs, *options))


@pytest.mark.skipif(not RECENT, reason='torch.compile needs torch 2.4')
@KINDS
def test_second_derivative_of_the_operators_is_refused(kind):
    inputs, options = operator_inputs(kind)
    leaves = [x.requires_grad_() for x in inputs]
    grads = torch.autograd.grad(call_operator(kind, leaves, options).sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: use impl='naive'"):
        grads[0].sum().backward()
