"""Models inside of others."""

import torch.nn as nn


def innermost_model(model: nn.Module) -> nn.Module:
    """The model of the config, which may be distributed, or wrapped for test-time augmentation."""
    while hasattr(model, 'module'):
        model = model.module
    return model
