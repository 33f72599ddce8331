from .dat import DAT
from .mixers import (
    DeformableAttention,
    DeformableTokenAttention,
    NeighborhoodAttention,
    ShiftedWindowAttention,
    WindowAttention,
    record_sampling,
)

__all__ = [
    'DAT',
    'DeformableAttention',
    'DeformableTokenAttention',
    'NeighborhoodAttention',
    'ShiftedWindowAttention',
    'WindowAttention',
    'record_sampling',
]
