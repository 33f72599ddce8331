"""What differs between the versions that mmdat works with: all of it is here."""

from typing import Union

import torch
from torch import Tensor


def is_compiling() -> bool:
    """Whether torch.compile or torch.export is tracing."""
    # torch 2.1 does not have the public function yet; importing torch._dynamo takes seconds.
    return torch.compiler.is_compiling() if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling()


def at_least(size: Union[int, torch.SymInt, Tensor], least: int) -> Union[int, torch.SymInt, Tensor]:
    """The larger of a size and a number, in a form that exported and traced programs keep for other sizes."""
    # torch.jit.trace makes a tensor of a size; torch.export follows sym_max, but would fix the size for max.
    return size.clamp(min=least) if isinstance(size, Tensor) else torch.sym_max(size, least)
