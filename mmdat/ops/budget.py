"""How much the fast forms may hold at a time."""

import os
from typing import Optional

import torch

#: Bytes of scores that are held at a time, on a CPU a part of its caches, elsewhere enough for few large kernels.
CHUNK_BYTES = {'cpu': 8 * 2**20, 'other': 256 * 2**20}

# Read once: torch.compile of torch 2.1 cannot trace the environment.
_FROM_ENVIRONMENT = os.environ.get('MMDAT_CHUNK_BYTES')


def scores_at_a_time(device: torch.device, dtype: torch.dtype, chunk_bytes: Optional[int] = None) -> int:
    """The number of attention scores of ``dtype`` that a fast form holds at a time.

    Args:
        device: Where the scores are.
        dtype: Their dtype.
        chunk_bytes: The budget; by default that of the environment variable ``MMDAT_CHUNK_BYTES`` when mmdat was
            imported, or :data:`CHUNK_BYTES`.

    Raises:
        ValueError: If the budget is not positive.
    """
    if chunk_bytes is None:
        default = CHUNK_BYTES['cpu' if device.type == 'cpu' else 'other']
        chunk_bytes = default if _FROM_ENVIRONMENT is None else int(_FROM_ENVIRONMENT)
    if chunk_bytes < 1:
        raise ValueError(f'chunk_bytes (MMDAT_CHUNK_BYTES) must be positive, got {chunk_bytes}')
    return max(chunk_bytes // torch.finfo(dtype).bits * 8, 1)
