from .dat import DAT
from .mixers import DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention, record_sampling

__all__ = [
    'DAT',
    'DeformableAttention',
    'NeighborhoodAttention',
    'ShiftedWindowAttention',
    'WindowAttention',
    'record_sampling',
]
