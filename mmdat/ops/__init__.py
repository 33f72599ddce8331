"""Pure functions on tensors; no modules, no configuration."""

from .deform_sample import SAMPLERS, deform_sample
from .deformable_attention import choose_deformable_attention, deformable_attention
from .implementation import IMPLEMENTATIONS, Choice, check_implementation
from .local_attention import (
    choose_neighborhood_attention,
    choose_window_attention,
    neighborhood_attention,
    window_attention,
)
from .position_bias import FixedBias, LogBias, TableBias

__all__ = [
    'IMPLEMENTATIONS',
    'SAMPLERS',
    'Choice',
    'FixedBias',
    'LogBias',
    'TableBias',
    'check_implementation',
    'choose_deformable_attention',
    'choose_neighborhood_attention',
    'choose_window_attention',
    'deform_sample',
    'deformable_attention',
    'neighborhood_attention',
    'window_attention',
]
