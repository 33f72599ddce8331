"""What operators add to the memory of a process, as the system counts it, whatever the shape of the map."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ops_memory import LARGE, SMALL, THIN

SCRIPT = Path(__file__).parent / 'ops_memory.py'
MIB = 2**20


@pytest.mark.parametrize(
    'cases, mode, budget',
    [
        pytest.param(SMALL, 'training', MIB, id='training'),
        pytest.param(SMALL, 'forward', MIB, id='forward', marks=pytest.mark.slow),
        pytest.param(LARGE, 'forward', 8 * MIB, id='large forward', marks=pytest.mark.slow),
        pytest.param(LARGE, 'training', 8 * MIB, id='large training', marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_process_is_linear_in_the_pixels(cases, mode, budget):
    """A bounded number of tensors of the budget's size, and of tensors like the inputs.

    Where one tile holds all, the small cases take 50 to 600 MiB. The process's threads and its allocator have a share
    in the bound, which therefore leaves half as much again as was ever seen.
    """
    for name, inputs, beyond in measured(mode, cases, MMDAT_CHUNK_BYTES=str(budget)):
        assert beyond <= 32 * budget + 3 * inputs, name


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['forward', 'training'])
def test_memory_of_backbones_for_thin_images(mode):
    """Seen were 49 to 154 MiB; a table of all pairs of places took 9.5 GB."""
    for name, _, beyond in measured(mode, THIN):
        assert beyond <= 300 * MIB, name


def measured(mode, cases, **environment):
    """Name, bytes of the inputs and bytes beyond them of each case."""
    command = [sys.executable, str(SCRIPT), mode, *cases]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, **environment))
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    lines = [line.rpartition(': ') for line in result.stdout.splitlines()]
    assert [name for name, _, _ in lines] == list(cases)
    return [(name, *map(int, numbers.split())) for name, _, numbers in lines]
