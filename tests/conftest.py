import pytest
import torch
from yapf.yapflib import yapf_api

from mmdat.ops.local_attention import tiles

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


def _remember(format_code):
    """MMEngine formats the config of a run five times, which takes longer than a run of a test does."""
    known = {}

    def remembering(text, **options):
        key = text, repr(options)
        if key not in known:
            known[key] = format_code(text, **options)
        return known[key]

    return remembering


yapf_api.FormatCode = _remember(yapf_api.FormatCode)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cold():
    """No test, and no mutant, meets what mmdat remembers of an earlier one."""
    tiles.neighborhoods.cache_clear()
    tiles.windows.cache_clear()


@pytest.fixture(params=sorted(NANO))
def nano(request):
    """The arch dict of a small model, of either generation."""
    return NANO[request.param]
