# A config that a run left names the backend of its checkpoints; MMEngine imports this module for the hooks in it.
from mmdat.checkpoints import whole_files  # noqa: F401

from .data_check import DataCheckHook
from .finite_weights import FiniteWeightsHook
from .loops import EpochBasedTrainLoop, IterBasedTrainLoop
from .sampling_points import SamplingPointsHook
from .seed import SeedHook

__all__ = [
    'DataCheckHook',
    'EpochBasedTrainLoop',
    'FiniteWeightsHook',
    'IterBasedTrainLoop',
    'SamplingPointsHook',
    'SeedHook',
]
