"""The numbers of the Triton kernels, against the specifications.

test_triton.py runs this file in a process of its own: on CPUs through Triton's interpreter, which must be chosen before
kernels are imported, and with MMDAT_TEST_DEVICE=cuda on a GPU.
"""

import os

import pytest
import torch
from test_ops import attention_inputs, axis, local_attention, local_inputs, run, table_attention

from mmdat import doctor
from mmdat.ops import TableBias, deformable_attention, neighborhood_attention

DEVICE = os.environ.get('MMDAT_TEST_DEVICE', 'cpu')
# Of the largest value. A table's coefficients are in float16 then, and weights and gradients of scores are rounded.
BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def compare(attend, inputs, dtype=torch.float32, num_maps=3):
    """Output and gradients of the kernels with maps of a dtype, against the specification in float64."""
    inputs = [x.to(dtype) for x in inputs[:num_maps]] + inputs[num_maps:]
    kernels = run(attend('triton'), [x.to(DEVICE) for x in inputs])
    naive = run(attend('naive'), [x.double() for x in inputs])
    assert [x.dtype for x in kernels[:4]] == [dtype] * 4
    for a, b in zip(kernels, naive):
        # With one key, the gradients of scores are differences of equal numbers, in float64 exactly zero.
        assert (a.cpu() - b).abs().max() <= BOUNDS[dtype] * b.abs().max().clamp(min=0.5)


# batch, heads, groups, queries, keys, table, channels of a head
CASES = [
    (2, 2, 1, (5, 4), (3, 4), (5, 5), 16),
    (1, 2, 2, (9, 3), (5, 7), (7, 5), 24),
    (2, 1, 1, (1, 9), (1, 1), (1, 9), 8),
]
MORE_CASES = [
    (2, 2, 1, (5, 7), (3, 4), (13, 13), 16),
    (1, 6, 3, (5, 4), (7, 3), (5, 31), 48),
    (1, 2, 2, (20, 11), (9, 8), (27, 27), 64),
    (2, 1, 1, (1, 1), (1, 1), (1, 1), 16),
    (1, 2, 1, (12, 9), (9, 8), (16, 10), 32),
    (1, 3, 3, (2, 37), (3, 2), (4, 111), 5),
]
slow = lambda cases: [pytest.param(*case, marks=pytest.mark.slow) for case in cases]  # noqa: E731


@pytest.mark.parametrize('batch, heads, groups, size, key_size, table_size, dim', [*CASES, *slow(MORE_CASES)])
def test_deformable_attention(batch, heads, groups, size, key_size, table_size, dim):
    inputs = attention_inputs(batch, heads, groups, size, key_size, table_size, torch.float32, dim, spread=2)
    compare(lambda impl: table_attention(heads, impl=impl), inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_deformable_attention_in_half_precision(dtype):
    inputs = attention_inputs(1, 2, 1, (5, 7), (3, 4), (13, 13), torch.float32, 16)
    compare(lambda impl: table_attention(2, impl=impl), inputs, dtype)


@pytest.mark.parametrize('convention', ['border', pytest.param('centre', marks=pytest.mark.slow)])
def test_gradients_of_positions_on_the_entries_of_the_table(convention):
    """There the slope is that of the cell behind, as in grid_sample; both conventions of coordinates."""
    points = torch.linspace(-1, 1, 5) if convention == 'border' else (torch.arange(4) + 0.5) / 2 - 1
    inputs = attention_inputs(1, 1, 1, (len(points),) * 2, (2, 2), (9, 9), torch.float32)
    inputs[4] = points[torch.randint(len(points), inputs[4].shape)]
    compare(attention_between(points, points), inputs)


def attention_between(y, x):
    """Deformable attention of one head whose queries lie at given rows and columns."""

    def attend(impl):
        def function(query, key, value, table, position):
            axes = [axis.to(query.device, position.dtype) for axis in (y, x)]
            return deformable_attention(query, key, value, 1, TableBias(table, position, *axes, True), impl=impl)

        return function

    return attend


@pytest.mark.parametrize('convention', ['border', 'centre'])
@pytest.mark.parametrize('side', [8, 9])
def test_keys_far_outside_and_large_scores(side, convention):
    inputs = attention_inputs(1, 1, 1, (3, 4), (3, 3), (side, side), torch.float32)
    inputs[0] = inputs[0] * 30
    inputs[4] = inputs[4].sign() * torch.logspace(0, 12, 18).view_as(inputs[4])
    axes = [torch.linspace(-1, 1, n) if convention == 'border' else axis(n, torch.float32) for n in (3, 4)]
    compare(attention_between(*axes), inputs)


@pytest.mark.parametrize('where', [0, 1, 2, 4])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_nonfinite_inputs_spread_as_in_the_specification(where, value):
    inputs = attention_inputs(1, 1, 1, (2, 3), (2, 2), (5, 5), torch.float32)
    inputs[where].view(-1)[1] = value
    out = table_attention(1, impl='triton')(*[x.to(DEVICE) for x in inputs]).cpu()
    torch.testing.assert_close(out, table_attention(1, impl='naive')(*inputs), equal_nan=True)


@pytest.mark.parametrize(
    'operator, size, height, width, dim',
    [
        ('neighborhood', 3, 9, 4, 8),
        ('neighborhood', 7, 7, 9, 8),
        ('window', 7, 7, 7, 8),
        *slow([('neighborhood', 7, 17, 13, 24), ('neighborhood', 13, 15, 13, 8), ('neighborhood', 1, 4, 5, 16)]),
        *slow([('window', 7, 14, 21, 48), ('window', 10, 20, 10, 8), ('window', 3, 6, 3, 64)]),
    ],
)
def test_local_attention(operator, size, height, width, dim):
    inputs = local_inputs(operator, 1, 2, height, width, size, torch.float32, dim)
    compare(lambda impl: local_attention(operator, 2, size, impl=impl), inputs)


def in_layout(layout, inputs, num_maps=3):
    """Maps as they may lie in memory."""
    maps, others = inputs[:num_maps], inputs[num_maps:]
    if layout == 'channels last':
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    elif layout == 'chunks':  # as those of a projection to query, key and value
        together = torch.cat(maps, 1).contiguous(memory_format=torch.channels_last)
        maps = list(together.chunk(num_maps, 1))
    elif layout == 'one image for all':
        maps = [x[:1].expand_as(x) for x in maps]
    return maps + others


@pytest.mark.parametrize('layout', ['channels last', 'chunks', 'one image for all'])
@pytest.mark.parametrize('operator', ['deformable', 'neighborhood', 'window'])
def test_maps_of_any_layout_in_memory(operator, layout):
    if operator == 'deformable':
        inputs = attention_inputs(2, 2, 1, (3, 4), (3, 4), (5, 5), torch.float32, 16)
        attend = lambda impl: table_attention(2, impl=impl)  # noqa: E731
    else:
        inputs = local_inputs(operator, 2, 2, 3, 6, 3, torch.float32, 16)
        attend = lambda impl: local_attention(operator, 2, 3, impl=impl)  # noqa: E731
    inputs = in_layout(layout, inputs)
    compare(attend, inputs)
    out = attend('triton')(*[x.to(DEVICE) for x in inputs])
    assert out.stride() == torch.empty_like(inputs[0]).stride()  # as compilers are told


@pytest.mark.parametrize('operator', ['neighborhood', 'window'])
def test_local_attention_reads_nothing_beyond_its_table(operator, monkeypatch):
    from mmdat.ops.triton import local

    class Guarded(local._Call):
        def __init__(self, *args):
            super().__init__(*args)
            whole = self.table.new_full((self.table.numel() + 2000,), torch.nan)
            whole[1000:-1000] = self.table.flatten()
            self.table = whole[1000:-1000].view(self.table.shape)

    monkeypatch.setattr(local, '_Call', Guarded)
    inputs = local_inputs(operator, 1, 1, 6, 3, 3, torch.float32, 16)
    compare(lambda impl: local_attention(operator, 1, 3, impl=impl), inputs)


@pytest.mark.parametrize('dtype', [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize('operator', ['neighborhood', pytest.param('window', marks=pytest.mark.slow)])
def test_local_attention_in_half_precision(operator, dtype):
    inputs = local_inputs(operator, 1, 1, 6, 6, 3, torch.float32, 16)
    compare(lambda impl: local_attention(operator, 1, 3, impl=impl), inputs, dtype)


def test_deterministic_algorithms_are_refused_by_name_where_there_is_none():
    inputs = [x.to(DEVICE) for x in attention_inputs(1, 1, 1, (1, 2), (1, 1), (3, 3), torch.float32)]
    torch.use_deterministic_algorithms(True)
    try:
        run(table_attention(1, impl='triton'), inputs, [True, True, True, False, True])
        with pytest.raises(RuntimeError, match="no deterministic algorithm with impl='triton'"):
            run(table_attention(1, impl='triton'), inputs)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autotuning_in_half_precision_tries_each_candidate_once_and_changes_no_numbers(monkeypatch):
    import triton

    from mmdat.ops.triton import launch

    tried = []

    def do_bench(function):
        function()
        tried.append(function)
        return 1 / len(tried)  # the last is the quickest

    monkeypatch.setenv('MMDAT_AUTOTUNE', '1')
    monkeypatch.setattr(triton.testing, 'do_bench', do_bench)
    monkeypatch.setattr(launch, '_quickest', {})
    inputs = attention_inputs(1, 1, 1, (2, 3), (1, 2), (3, 5), torch.float32)
    for dtype, kernels in ((torch.float32, 0), (torch.float16, 3), (torch.float16, 3)):
        compare(lambda impl: table_attention(1, impl=impl), inputs, dtype)
        assert len(tried) == kernels * len(launch.CANDIDATES)
    assert list(launch._quickest.values()) == [launch.CANDIDATES[-1]] * 3


def test_the_doctor_tries_the_kernels():
    assert doctor.kernels(DEVICE).startswith('run')


def test_no_images():
    inputs = attention_inputs(0, 2, 1, (3, 4), (2, 2), (5, 5), torch.float32)
    assert [x.shape for x in run(table_attention(2, impl='triton'), [x.to(DEVICE) for x in inputs])[1:]] == [
        x.shape for x in inputs
    ]


def test_compiled_operators():
    """Compilers see single operators whose declarations hold."""
    inputs = [x.to(DEVICE) for x in attention_inputs(1, 1, 1, (1, 3), (1, 2), (3, 5), torch.float32)]
    function = table_attention(1, impl='triton')
    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    for a, b in zip(run(compiled, inputs), run(function, inputs)):
        torch.testing.assert_close(a, b)
    tests = 'test_schema', 'test_autograd_registration', 'test_faketensor'
    options = [axis(n, torch.float32).to(DEVICE) for n in (1, 3)]
    check_operator('deformable_attention_triton', (*inputs, *options, 1), tests)
    # Where no copy is made, gradients must not share memory.
    inputs = [x.to(DEVICE) for x in attention_inputs(2, 2, 1, (3, 4), (2, 2), (5, 5), torch.float32, 16)]
    options = [axis(n, torch.float32).to(DEVICE) for n in (3, 4)]
    check_operator('deformable_attention_triton', (*in_layout('channels last', inputs), *options, 2), tests)
    maps = [x.to(DEVICE) for x in local_inputs('neighborhood', 1, 1, 3, 3, 3, torch.float32)]
    check_operator('local_attention_triton', (*maps, 1, 'neighborhood', 3, 0), tests)
    *maps, table = [x.to(DEVICE) for x in local_inputs('window', 1, 2, 3, 3, 3, torch.float32)]
    table = table.t().unflatten(1, (5, 5)).flip(1, 2)  # in a layout of its own, as the layer gives it
    check_operator('local_attention_triton', (*maps, table, 2, 'window', 3, 0), tests)


def check_operator(name, arguments, tests):
    """What is declared of an operator and of its gradients, their layout in memory too, is what comes."""
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    operators = torch.ops.mmdat
    torch.library.opcheck(getattr(operators, name), arguments, test_utils=tests)
    outs = getattr(operators, name)(*arguments)
    needs = [isinstance(x, torch.Tensor) and i < 5 for i, x in enumerate(arguments)]
    backward = getattr(operators, f'{name}_backward')
    torch.library.opcheck(backward, (needs, outs[0], *outs, *arguments), test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.slow
def test_backbone(nano):
    from mmdat import DAT

    models = [DAT(nano, img_size=64, attn_impl=impl).eval().to(DEVICE) for impl in ('triton', 'naive')]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.randn(1, 3, 64, 96, device=DEVICE)
    for out, expected in zip(*[model(x) for model in models]):
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_neighborhood_attention_has_no_second_derivative():
    inputs = [x.to(DEVICE).requires_grad_() for x in local_inputs('neighborhood', 1, 1, 3, 3, 3, torch.float32)]
    out = neighborhood_attention(*inputs, 1, 3, impl='triton')
    grads = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative: use impl='naive'"):
        grads[0].sum().backward()
