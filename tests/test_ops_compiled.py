"""The operators and backbones on the meta device, compiled and exported."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdat import DAT

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
    """With the budget of such devices, the fast form takes less than 1.5 times the calls of the naive one."""
    calls = {}
    for attn_impl in ('fast', 'naive'):
        with torch.device('meta'):
            model = DAT(arch, attn_impl=attn_impl).eval()
            x = torch.randn(1, 3, 800, 1344)
        with CountCalls() as counter, torch.no_grad():
            model(x)
        calls[attn_impl] = counter.count
    assert calls['fast'] < 1.5 * calls['naive']


@pytest.mark.skipif(not RECENT, reason='torch.compile of torch 2.1 makes NaN of the whole backbone')
@pytest.mark.parametrize('training', [False, True])
def test_compiled_backbone(nano, training):
    """Without graph breaks, the same outputs and gradients."""
    model = DAT(nano, img_size=64).eval()
    x = torch.randn(1, 3, 70, 96)
    torch._dynamo.reset()
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


@pytest.mark.skipif(not RECENT, reason='torch.library.opcheck came with torch 2.4')
def test_operators_do_what_their_declarations_say():
    position = (torch.rand(2, 2, 3, 4, 2) * 2 - 1).requires_grad_()
    maps = [torch.randn(2, 8, *size, requires_grad=True) for size in ((5, 6), (3, 4), (3, 4))]
    table = torch.randn(4, 7, 7, requires_grad=True)
    args = *maps, table, position, torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 6), True, 4, 1000
    tests = 'test_schema', 'test_autograd_registration', 'test_faketensor'
    torch.library.opcheck(torch.ops.mmdat.deformable_attention.default, args, test_utils=tests)
    maps = [torch.randn(2, 8, 9, 12, requires_grad=True) for _ in range(3)]
    for pattern in ('neighborhood', 'window'):
        args = *maps, torch.randn(2, 5, 5, requires_grad=True), 2, pattern, 3, 0, 1000
        torch.library.opcheck(torch.ops.mmdat.local_attention.default, args, test_utils=tests)
