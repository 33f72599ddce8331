"""Every family of the zoo trains and predicts with mmcv-ops-torchvision as with mmcv's compiled operators."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_steps import NAMES, RECORDED
from uncompiled import paths_without_compiled_operators

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    return {**os.environ, 'PYTHONPATH': paths_without_compiled_operators(tmp_path_factory.mktemp('uncompiled'))}


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 14), reason='the random weights are those of torch 2.14')
@pytest.mark.parametrize('name', NAMES)
def test_a_step_is_the_one_recorded_with_compiled_operators(name, environment):
    command = [sys.executable, str(HERE / 'family_steps.py'), '--check', name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    operators, *result = done.stdout.strip().splitlines()
    assert operators.endswith('_ext.py'), operators
    assert done.returncode == 0 and result[-1].endswith('the same'), done.stdout + done.stderr[-1500:]


def test_every_family_is_recorded():
    assert set(torch.load(RECORDED, weights_only=True)) == set(NAMES)
