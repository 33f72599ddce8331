from .sampling_points import SamplingPointsHook
from .seed import SeedHook

__all__ = ['SamplingPointsHook', 'SeedHook']
