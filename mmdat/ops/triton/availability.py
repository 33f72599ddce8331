"""Where the kernels can run, and for what. Importing this needs no Triton."""

import os
import subprocess
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from mmdat.compat import is_compiling, is_watched

from ..checks import sizes_are_numbers

#: Of dot's options and of arguments that get no kernel of their own.
OLDEST_TRITON = (3, 2)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Images times heads, which are an axis of the kernels' grids: CUDA's limit.
MOST_HEADS = 65535


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (slowly, for tests)."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def check_available(query: Tensor, num_heads: int) -> None:
    """Raise a RuntimeError of one sentence where ``impl='triton'`` cannot run, a ValueError where it has no kernel."""
    missing = _what_is_missing(query.device)
    if missing is not None:
        raise RuntimeError(f"impl='triton' needs {missing}; impl='fast' (attn_impl='fast' of the backbone) runs here")
    others = _what_others_are_for(query, num_heads)
    if others is not None:
        raise ValueError(f"impl='triton' has kernels for {others}")


def is_available(query: Tensor, num_heads: int) -> bool:
    """Whether the kernels can take a query on a GPU, and nobody misses the operations that they take the place of."""
    if query.device.type != 'cuda' or _what_others_are_for(query, num_heads) is not None:
        return False
    if not is_compiling() and is_watched():
        return False
    return _what_is_missing(query.device) is None


def _what_others_are_for(query: Tensor, num_heads: int) -> Optional[str]:
    if query.dtype not in DTYPES:
        return f'float32, float16 and bfloat16, not {query.dtype}'
    if query.shape[1] // num_heads > 64:
        return f'heads of up to 64 channels, not {query.shape[1] // num_heads}'
    if sizes_are_numbers() and query.shape[0] * num_heads > MOST_HEADS:
        return f'up to {MOST_HEADS} images times heads, not {query.shape[0] * num_heads}'
    return None


def _what_is_missing(device: torch.device) -> Optional[str]:
    missing = _missing_triton()
    if missing is not None or interpreted():
        return missing
    if device.type != 'cuda':
        return f'a CUDA device, but the tensors are on {device.type}'
    if not torch.cuda.is_available() or torch.version.hip:
        return 'a GPU of NVIDIA that PyTorch sees'
    if torch.cuda.get_device_capability(device)[0] < 8:
        return f'a GPU of compute capability 8.0 or newer, not {torch.cuda.get_device_name(device)}'
    # A compiler of PyTorch's, which would trace the attempt, needs the same.
    return None if is_compiling() else _try(device)


def _missing_triton() -> Optional[str]:
    try:
        import triton
    except ImportError:
        return 'Triton, which is not installed'
    version = tuple(int(part) for part in triton.__version__.split('.')[:2])
    return None if version >= OLDEST_TRITON else f'Triton 3.2 or newer, not {triton.__version__}'


@lru_cache(maxsize=64)
def _try(device: torch.device) -> Optional[str]:
    """Compile and run the smallest kernel."""
    from .probe import empty_kernel

    try:
        with torch.cuda.device(device):
            empty_kernel[(1,)]()
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return (
            "a C compiler and Python's headers (Debian: gcc, python3-dev), for it compiles when it first runs, which "
            f'fails here ({error})'
        )
    return None
