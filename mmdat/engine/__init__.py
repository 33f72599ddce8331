from .sampling_points_hook import SamplingPointsHook
from .seed_hook import SeedHook

__all__ = ['SamplingPointsHook', 'SeedHook']
