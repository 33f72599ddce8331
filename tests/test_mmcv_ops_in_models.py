"""Models of the zoo with mmcv-ops-torchvision in the place of mmcv's operators, whether these are compiled or not."""

import mmcv_ops_torchvision
import pytest
import torch
from family_steps import NAMES, RECORDED, Calls, modules_with_operators, step

recorded = torch.load(RECORDED, weights_only=True)
#: Families whose steps take more than two seconds.
LONG = ('cascade', 'dino', 'mask2former', 'upernet_dat_t', 'upernet_datpp_t')


def marked(name):
    return pytest.param(name, marks=pytest.mark.slow) if name.startswith(LONG) else name


@pytest.fixture
def calls(monkeypatch):
    """The stand-in as mmcv's extension, which remembers what of it was called."""
    calls = Calls(mmcv_ops_torchvision)
    for module in modules_with_operators():
        monkeypatch.setattr(module, 'ext_module', calls)
    return calls


@pytest.mark.parametrize('name', map(marked, recorded))
def test_training_and_prediction_are_those_of_compiled_operators(name, calls):
    expected, operators = recorded[name]
    result = step(name)
    assert sorted(calls.names) == operators
    assert result.keys() == expected.keys()
    for key, value in result.items():
        # The gradient of bilinear sampling jumps from pixel to pixel: that of a whole model shows every rounding. A
        # pixel at the threshold of its mask falls to either side of it by rounding.
        rounded = {'gradient norm': (1e-3, 0), 'bboxes': (0, 1e-3), 'mask areas': (1e-3, 2)}
        relative, absolute = rounded.get(key, (1e-5, 1e-5))
        torch.testing.assert_close(value, expected[key], rtol=relative, atol=absolute, msg=f'{key}: {value}')


@pytest.mark.parametrize('name', [marked(name) for name in NAMES if name not in recorded])
def test_others_call_no_operator_on_a_cpu(name, calls):
    """Deformable attention and focal loss of mmcv are plain PyTorch there."""
    assert all(value.isfinite().all() for value in step(name).values())
    assert not calls.names
