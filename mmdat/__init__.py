"""DAT and DAT++, Vision Transformers with Deformable Attention, for PyTorch and OpenMMLab."""

from .compat import HAS_MMENGINE
from .extraction import features
from .models import (
    DAT,
    DeformableAttention,
    NeighborhoodAttention,
    ShiftedWindowAttention,
    WindowAttention,
    record_sampling,
)
from .version import __version__
from .weights import list_weights

if HAS_MMENGINE:
    from . import registry  # noqa: F401, so that MMEngine knows what configs and checkpoints can name

__all__ = [
    'DAT',
    'DeformableAttention',
    'NeighborhoodAttention',
    'ShiftedWindowAttention',
    'WindowAttention',
    '__version__',
    'features',
    'list_weights',
    'record_sampling',
]
