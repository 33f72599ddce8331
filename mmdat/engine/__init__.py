from .sampling_points_hook import SamplingPointsHook

__all__ = ['SamplingPointsHook']
