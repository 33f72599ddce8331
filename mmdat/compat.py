"""Which PyTorch is installed, and whether MMEngine is: what the core makes of it."""

from typing import Optional, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils import _python_dispatch

try:
    import mmengine  # noqa: F401

    HAS_MMENGINE = True
except ImportError as error:
    HAS_MMENGINE = False
    _REASON = str(error)

if HAS_MMENGINE:
    from mmengine.model import BaseModule
else:

    class BaseModule(nn.Module):
        """What stands in for MMEngine's BaseModule: a module that cannot be initialised by a config."""

        def __init__(self, init_cfg: Optional[dict] = None):
            super().__init__()
            if init_cfg is not None:
                raise ImportError(
                    f'init_cfg needs MMEngine, which cannot be imported ({_REASON}): install mmengine, or leave '
                    f'init_cfg out and load weights with load_state_dict'
                )


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is tracing."""
    # Before torch 2.3 there is no public way to ask, and compiled models are not supported.
    return hasattr(torch.compiler, 'is_compiling') and torch.compiler.is_compiling()


def is_exporting() -> bool:
    """Whether torch.export is tracing, as far as PyTorch can say (from 2.7 on)."""
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()


def is_watched() -> bool:
    """Whether something sees each operation (a ``TorchDispatchMode``), such as PyTorch's counter or fake tensors."""
    # PyTorch 2.1 cannot say.
    ask = getattr(_python_dispatch, 'is_in_torch_dispatch_mode', None)
    return ask is not None and ask()


def at_least(size: Union[int, torch.SymInt, Tensor], least: int) -> Union[int, torch.SymInt, Tensor]:
    """The larger of a size and a number, in a form that exported and traced programs keep for other sizes."""
    # torch.jit.trace makes a tensor of a size; torch.export follows sym_max, but would fix the size for max.
    return size.clamp(min=least) if isinstance(size, Tensor) else torch.sym_max(size, least)
