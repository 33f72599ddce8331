"""Pure functions on tensors; no modules, no configuration."""

from .deform_sample import SAMPLERS, deform_sample
from .deformable_attention import deformable_attention
from .implementation import IMPLEMENTATIONS, check_implementation
from .local_attention import neighborhood_attention, window_attention
from .position_bias import FixedBias, LogBias, TableBias

__all__ = [
    'IMPLEMENTATIONS',
    'SAMPLERS',
    'FixedBias',
    'LogBias',
    'TableBias',
    'check_implementation',
    'deform_sample',
    'deformable_attention',
    'neighborhood_attention',
    'window_attention',
]
