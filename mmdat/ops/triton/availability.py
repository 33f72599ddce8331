"""Where the kernels can run. Nothing here needs Triton."""

import os
from functools import lru_cache
from typing import Optional

import torch
from torch import Tensor

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
    missing = _what_is_missing()
    if missing is None and not interpreted():
        if query.device.type != 'cuda':
            missing = f'a CUDA device, but the tensors are on {query.device.type}'
        elif torch.cuda.get_device_capability(query.device)[0] < 8:
            missing = f'a GPU of compute capability 8.0 or newer, not {torch.cuda.get_device_name(query.device)}'
    if missing is not None:
        raise RuntimeError(f"impl='triton' needs {missing}; impl='fast' (attn_impl='fast' of the backbone) runs here")
    if query.dtype not in DTYPES:
        raise ValueError(f"impl='triton' has kernels for float32, float16 and bfloat16, not {query.dtype}")
    if query.shape[1] // num_heads > 64:
        raise ValueError(f"impl='triton' has kernels for heads of up to 64 channels, not {query.shape[1] // num_heads}")
    if sizes_are_numbers() and query.shape[0] * num_heads > MOST_HEADS:
        raise ValueError(
            f"impl='triton' has kernels for up to {MOST_HEADS} images times heads, not {query.shape[0] * num_heads}"
        )


@lru_cache(maxsize=8)
def _what_is_missing() -> Optional[str]:
    try:
        import triton
    except ImportError:
        return 'Triton, which is not installed'
    version = tuple(int(part) for part in triton.__version__.split('.')[:2])
    return None if version >= OLDEST_TRITON else f'Triton 3.2 or newer, not {triton.__version__}'
