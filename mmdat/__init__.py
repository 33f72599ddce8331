"""DAT and DAT++, Vision Transformers with Deformable Attention, for PyTorch and OpenMMLab."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .extraction import features
    from .models import (
        DAT,
        DeformableAttention,
        DeformableTokenAttention,
        NeighborhoodAttention,
        ShiftedWindowAttention,
        WindowAttention,
        record_sampling,
    )
    from .weights import list_weights

__all__ = [
    'DAT',
    'DeformableAttention',
    'DeformableTokenAttention',
    'NeighborhoodAttention',
    'ShiftedWindowAttention',
    'WindowAttention',
    '__version__',
    'features',
    'list_weights',
    'record_sampling',
]

_MODULES = {'features': 'extraction', 'list_weights': 'weights'}


def __getattr__(name: str) -> Any:
    """Import PyTorch when it is needed: a command's ``--help`` does not wait for it."""
    if name in ('models', 'ops'):
        return importlib.import_module(f'{__name__}.{name}')
    if name in __all__:
        if importlib.util.find_spec('mmengine') is not None:
            importlib.import_module(f'{__name__}.registry')  # so that MMEngine knows what configs can name
        return getattr(importlib.import_module(f'{__name__}.{_MODULES.get(name, "models")}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
