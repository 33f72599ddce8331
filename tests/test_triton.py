"""What can be proven of the Triton kernels without a GPU: their numbers, and what the compiler makes of them."""

import importlib.util
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from test_ops import attention_inputs, local_attention, local_inputs, table_attention

from mmdat.ops.triton import availability

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(availability._missing_triton() is not None, reason='needs Triton 3.2 or newer')


@needs_triton
@pytest.mark.parametrize('which', ['not slow', pytest.param('slow', marks=pytest.mark.slow)])
def test_numbers(which):
    """tests/triton_numbers.py in a process of its own, where the interpreter takes the place of a GPU."""
    environment = dict(os.environ)
    if os.environ.get('MMDAT_TEST_DEVICE', 'cpu') == 'cpu':
        environment['TRITON_INTERPRET'] = '1'
    command = [
        sys.executable,
        '-m',
        'pytest',
        '-x',
        '-m',
        which,
        '-W',
        'ignore::RuntimeWarning',
        'tests/triton_numbers.py',
    ]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]
    assert ' passed' in result.stdout


@pytest.fixture(scope='module')
def resources():
    spec = importlib.util.spec_from_file_location('kernel_resources', ROOT / 'benchmarks' / 'kernel_resources.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DEFORMABLE = 'deformable forward', 'deformable query gradient', 'deformable key, value, position and table gradients'
REPRESENTATIVE = [
    (DEFORMABLE[0], 'float16', 32, 80),
    (DEFORMABLE[1], 'float16', 32, 86),
    (DEFORMABLE[2], 'float16', 32, 90),
    ('neighbourhood forward', 'bfloat16', 32, 89),
    ('window table gradient', 'float16', 32, 80),
    ('window query gradient', 'float32', 32, 90),
]
#: Instructions that move registers to memory and back, by kernel, dtype and channels of a head.
MOST_SPILLS = {
    (DEFORMABLE[2], 'float16', 32): 400,
    ('neighbourhood key and value gradients', 'float16', 32): 40,
    ('window table gradient', 'float16', 32): 10,
    (DEFORMABLE[1], 'float32', 32): 20,
    (DEFORMABLE[2], 'float32', 32): 30,
    (DEFORMABLE[1], 'float32', 64): 30,
    (DEFORMABLE[2], 'float32', 64): 50,
    ('neighbourhood forward', 'float32', 64): 20,
    ('neighbourhood query gradient', 'float32', 64): 150,
    ('neighbourhood key and value gradients', 'float32', 64): 280,
    ('window forward', 'float32', 64): 30,
    ('window query gradient', 'float32', 64): 180,
    ('window key and value gradients', 'float32', 64): 230,
    ('window table gradient', 'float32', 64): 30,
}


def check_resources(resources, name, dtype, channels, arch):
    found = resources.compile_kernel(name, dtype, channels, arch)
    assert found['shared'] <= resources.LIMITS[arch][0]
    assert found['blocks'] >= 1
    assert found['tensor_core'] > 0
    assert found['spills'] <= MOST_SPILLS.get((name, dtype, channels), 0), found


@needs_triton
@pytest.mark.parametrize('name, dtype, channels, arch', REPRESENTATIVE)
def test_kernels_fit_the_processors(resources, name, dtype, channels, arch):
    """Within the limits of shared memory, on tensor cores in half precision, without spills or with few."""
    check_resources(resources, name, dtype, channels, arch)


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('dtype, channels', [('float16', 32), ('float32', 32), ('float32', 64)])
@pytest.mark.parametrize('arch', [80, 86, 89, 90, 100, 120])
def test_all_kernels_fit_the_processors(resources, arch, dtype, channels):
    """Heads of 32 channels, as all published models have; those of 64 lack registers in float32."""
    for name in resources.KERNELS:
        check_resources(resources, name, dtype, channels, arch)


def call_deformable(impl='triton', **kwargs):
    return table_attention(2, impl=impl)(*attention_inputs(1, 2, 1, (2, 3), (2, 2), (5, 5), **kwargs))


def call_local(operator):
    return local_attention(operator, 2, 3, impl='triton')(*local_inputs(operator, 1, 2, 3, 3, 3, torch.float32))


@needs_triton
@pytest.mark.parametrize(
    'call',
    [lambda: call_deformable(dtype=torch.float32), lambda: call_local('window'), lambda: call_local('neighborhood')],
)
def test_without_a_gpu_the_kernels_say_so(call, monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    with pytest.raises(
        RuntimeError, match=r"impl='triton' needs a CUDA device, but the tensors are on cpu; impl='fast'"
    ):
        call()


def test_without_triton_the_kernels_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    with pytest.raises(RuntimeError, match="impl='triton' needs Triton, which is not installed"):
        call_deformable()


@needs_triton
def test_dtypes_and_heads_without_a_kernel_are_named(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    with pytest.raises(ValueError, match=r'float32, float16 and bfloat16, not torch\.float64'):
        call_deformable()
    with pytest.raises(ValueError, match='up to 64 channels, not 80'):
        call_deformable(dtype=torch.float32, dim=80)
    with pytest.raises(ValueError, match='neighbourhoods of up to 64 pixels a side, not 65'):
        local_attention('window', 1, 65, impl='triton')(*local_inputs('window', 1, 1, 65, 65, 65, torch.float32))
    with pytest.raises(ValueError, match='up to 65535 images times heads, not 65536'):
        table_attention(2, impl='triton')(*attention_inputs(32768, 2, 1, (1, 1), (1, 1), (1, 1), torch.float32, 1))


@needs_triton
@pytest.mark.parametrize(
    'error', [AssertionError('libcuda.so cannot be found'), OSError('noexec'), RuntimeError('gcc')]
)
def test_whatever_keeps_kernels_from_compiling_is_told_once(error, monkeypatch):
    from mmdat.ops.triton import probe

    class Failing:
        def __getitem__(self, grid):
            raise error

    monkeypatch.setattr(probe, 'empty_kernel', Failing())
    monkeypatch.setattr(torch.cuda, 'device', nullcontext)
    availability._try.cache_clear()
    try:
        device = torch.device('cuda', 0)
        assert f'compiling one failed here: {error}' in availability._try(device) == availability._try(device)
    finally:
        availability._try.cache_clear()


@needs_triton
def test_products_of_float32_follow_what_the_user_allows():
    """Also in the way of PyTorch 2.9 and later, where asking in the old way is an error."""
    from mmdat.ops.triton.launch import precision

    matmul = torch.backends.cuda.matmul
    name, values = 'allow_tf32', (True, False)
    if hasattr(torch.backends, 'fp32_precision'):
        name, values = 'fp32_precision', ('tf32', 'ieee')
    before = getattr(matmul, name)
    try:
        for value, expected in zip(values, ('tf32', 'tf32x3')):
            setattr(matmul, name, value)
            assert precision(torch.zeros(1))['PRECISION'] == expected
    finally:
        setattr(matmul, name, before)


def test_tensors_without_values_run_no_kernel():
    inputs = [x.to('meta') for x in attention_inputs(1, 2, 1, (2, 3), (2, 2), (5, 5))]
    assert table_attention(2, impl='triton')(*inputs).shape == (1, 8, 2, 3)
