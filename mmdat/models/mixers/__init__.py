"""The token mixers of DAT and DAT++, all ``forward(x: NCHW) -> NCHW``."""

from .deformable import DeformableAttention, SamplingPoints, record_sampling
from .neighborhood import NeighborhoodAttention
from .window import ShiftedWindowAttention, WindowAttention

__all__ = [
    'DeformableAttention',
    'NeighborhoodAttention',
    'SamplingPoints',
    'ShiftedWindowAttention',
    'WindowAttention',
    'record_sampling',
]
