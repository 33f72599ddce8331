import pytest
import torch

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


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=sorted(NANO))
def nano(request):
    """The arch dict of a small model, of either generation."""
    return NANO[request.param]
