from .data_check import DataCheckHook
from .sampling_points import SamplingPointsHook
from .seed import SeedHook

__all__ = ['DataCheckHook', 'SamplingPointsHook', 'SeedHook']
