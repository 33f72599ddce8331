"""The token mixers of DAT and DAT++, all ``forward(x: NCHW) -> NCHW``; and deformable attention of tokens."""

from .deformable import DeformableAttention
from .neighborhood import NeighborhoodAttention
from .offset_network import OffsetNetwork, SamplingPoints
from .recording import record_sampling
from .tokens import DeformableTokenAttention
from .window import ShiftedWindowAttention, WindowAttention

__all__ = [
    'DeformableAttention',
    'DeformableTokenAttention',
    'NeighborhoodAttention',
    'OffsetNetwork',
    'SamplingPoints',
    'ShiftedWindowAttention',
    'WindowAttention',
    'record_sampling',
]
