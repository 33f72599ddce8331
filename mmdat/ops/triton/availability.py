"""Where the kernels can run, and for what. Importing this needs no Triton."""

import os
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

from mmdat.compat import is_compiling, is_exporting, is_watched

from ..checks import sizes_are_numbers

#: Of dot's options and of arguments that get no kernel of their own.
OLDEST_TRITON = (3, 2)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Images times heads, which are an axis of the kernels' grids: CUDA's limit.
MOST_HEADS = 65535
#: Side of windows and neighbourhoods; beyond, the kernel of the table's gradient would have too many programs.
LARGEST_WINDOW = 64


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU (slowly, for tests)."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def check_available(query: Tensor, num_heads: int, size: int = 0) -> None:
    """Raise a RuntimeError of one sentence where ``impl='triton'`` cannot run, a ValueError where it has no kernel.

    Args:
        query: The query map.
        num_heads: Its heads.
        size: Side of windows or neighbourhoods, if there are any.
    """
    missing = _what_is_missing(query.device)
    if missing is not None:
        raise RuntimeError(f"impl='triton' needs {missing}; impl='fast' (attn_impl='fast' of the backbone) runs here")
    bounds = _bounds_that_are_exceeded(query, num_heads, size)
    if bounds is not None:
        raise ValueError(f"impl='triton' has kernels for {bounds}")


def is_available(query: Tensor, num_heads: int, size: int = 0) -> bool:
    """Whether the kernels can take a query on a GPU, and nobody misses the operations that they take the place of.

    The arguments are those of :func:`check_available`.
    """
    if query.device.type != 'cuda' or _bounds_that_are_exceeded(query, num_heads, size) is not None:
        return False
    # An exported program is to run elsewhere, too.
    if is_exporting() if is_compiling() else is_watched():
        return False
    return _what_is_missing(query.device) is None


def _bounds_that_are_exceeded(query: Tensor, num_heads: int, size: int) -> Optional[str]:
    if query.dtype not in DTYPES:
        return f'float32, float16 and bfloat16, not {query.dtype}'
    if query.shape[1] // num_heads > 64:
        return f'heads of up to 64 channels, not {query.shape[1] // num_heads}'
    if size > LARGEST_WINDOW:
        return f'windows and neighbourhoods of up to {LARGEST_WINDOW} pixels a side, not {size}'
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
    except Exception as error:  # Triton's own, of a linker, of a file system that allows no programs, and others
        if 'out of memory' in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            "what Triton compiles kernels with, such as a C compiler and Python's headers (Debian: gcc, python3-dev); "
            f'compiling one failed here: {reason}'
        )
    return None
