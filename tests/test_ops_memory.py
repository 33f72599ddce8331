"""What operators add to the memory of a process, as the system counts it, whatever the shape of the map."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ops_memory import LARGE, SMALL

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
    environment = dict(os.environ, MMDAT_CHUNK_BYTES=str(budget))
    command = [sys.executable, str(SCRIPT), mode, *cases]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    lines = result.stdout.splitlines()
    assert len(lines) == len(cases)
    for line in lines:
        inputs, beyond = map(int, line.rpartition(': ')[2].split())
        assert beyond <= 32 * budget + 3 * inputs, line
