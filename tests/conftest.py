"""What all tests share: the device, small architectures, demo data and a directory to work in.

The environment variable ``MMDAT_TEST_DEVICE`` (``cuda``, by default ``cpu``) chooses the device of all tests that use
``device`` or ``on_device``, and of runs through MMEngine's Runner.
"""

import os

import pytest
import torch

from mmdat.ops.local_attention import tiles

DEVICE = torch.device(os.environ.get('MMDAT_TEST_DEVICE', 'cpu'))
if DEVICE.type == 'cpu':
    # MMEngine's Runner takes a GPU wherever it sees one.
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
# Tolerances are those of float32, which convolutions on a GPU would round to 10 bits.
torch.backends.cudnn.allow_tf32 = False

#: A small architecture of each generation that holds all of its mixers.
NANO = {
    'dat': dict(
        generation='dat',
        dims=(16, 32, 64, 128),
        depths=(1, 1, 2, 2),
        heads=(1, 2, 4, 8),
        groups=(-1, -1, 2, 4),
        stage_spec=('L', 'S', 'LD', 'SD'),
    ),
    'dat++': dict(
        generation='dat++',
        dims=(16, 32, 64, 128),
        depths=(2, 1, 2, 1),
        heads=(1, 2, 4, 8),
        groups=(1, 1, 2, 4),
        stage_spec=('ND', 'D', 'ND', 'D'),
    ),
}


def _format_each_config_once():
    """MMEngine formats the config of a run five times, which takes longer than a run of a test does."""
    try:
        from yapf.yapflib import yapf_api
    except ImportError:  # the core is tested without MMEngine, too
        return
    format_code, known = yapf_api.FormatCode, {}

    def remembering(text, **options):
        key = text, repr(options)
        if key not in known:
            known[key] = format_code(text, **options)
        return known[key]

    yapf_api.FormatCode = remembering


_format_each_config_once()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cold():
    """No test, and no mutant, meets what mmdat remembers of an earlier one."""
    tiles.neighborhoods.cache_clear()
    tiles.windows.cache_clear()


@pytest.fixture
def device():
    """The device to test on."""
    return DEVICE


@pytest.fixture
def on_device(device):
    """New tensors and modules are made on the device to test on, unless a test names another."""
    if device.type == 'cpu':
        yield
    else:
        with device:
            yield


@pytest.fixture(params=sorted(NANO))
def nano(request):
    """The arch dict of a small model, of either generation."""
    return NANO[request.param]


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory):
    """A function that makes demo data (arguments of ``make_shapes``) once in a session; returns its directory."""
    made = {}

    def make(**arguments):
        from mmdat.datasets import make_shapes

        key = tuple(sorted(arguments.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp('data') / 'shapes'
            make_shapes(made[key], **arguments)
        return made[key]

    return make


@pytest.fixture(scope='module')
def data(request, demo_data):
    """The directory of demo data, to be read only; ``DEMO_DATA`` of a test module are arguments of ``make_shapes``."""
    return demo_data(**{**dict(num_train=4, num_val=2, size=64), **getattr(request.module, 'DEMO_DATA', {})})


@pytest.fixture
def workplace(data, tmp_path, monkeypatch):
    """The current directory of a test, with the demo data where configs look for it."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path
