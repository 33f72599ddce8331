"""Layer-wise learning-rate decay for detectors and segmentors."""

from functools import partial
from typing import Callable, Optional

import torch.nn as nn
from mmpretrain.engine import LearningRateDecayOptimWrapperConstructor

from mmdat.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's constructor, for any model with a ``backbone`` that knows the depth of its parameters.

    mmpretrain's own asks the model, which only its classifiers answer. A block ``n`` blocks below the heads is trained
    with ``layer_decay_rate**n`` of the learning rate.

    Example:
        >>> optim_wrapper = dict(
        ...     constructor='mmdat.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(layer_decay_rate=0.9))
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        get_layer_depth: Optional[Callable] = None,
        **kwargs,
    ) -> None:
        """Add the parameters of a module, as mmpretrain's constructor does."""
        if get_layer_depth is None:
            get_layer_depth = partial(module.backbone.get_layer_depth, prefix='backbone.')
        super().add_params(params, module, prefix=prefix, get_layer_depth=get_layer_depth)
