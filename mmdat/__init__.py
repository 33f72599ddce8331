"""DAT and DAT++, Vision Transformers with Deformable Attention, for OpenMMLab."""

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
