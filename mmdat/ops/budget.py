"""How much the forms of the operators may hold at a time."""

import os
from typing import Optional

import torch

#: Bytes that are held at a time, on a CPU a part of its caches, elsewhere enough for few large kernels.
CHUNK_BYTES = {'cpu': 8 * 2**20, 'other': 320 * 2**20}

#: The plain form of deformable attention is taken where it keeps no more than this for a layer. On a GPU it moves fewer
#: bytes in fewer kernels than tiles do (counted, docs/gpu.md); on a CPU it has fewer operations, as long as its scores
#: stay in the caches (measured, docs/performance.md).
PLAIN_BYTES = {'cpu': 16 * 2**20, 'other': 2**30}

# Read once: torch.compile of torch 2.1 cannot trace the environment.
_FROM_ENVIRONMENT = os.environ.get('MMDAT_CHUNK_BYTES')
_PLAIN_FROM_ENVIRONMENT = os.environ.get('MMDAT_PLAIN_BYTES')


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


def bytes_for_plain_form(device: torch.device, plain_bytes: Optional[int] = None) -> int:
    """How many bytes the plain form of a layer may hold to be chosen on a device.

    Args:
        device: Where the layer runs.
        plain_bytes: The bound; by default that of the environment variable ``MMDAT_PLAIN_BYTES`` when mmdat was
            imported, or :data:`PLAIN_BYTES`.
    """
    if plain_bytes is not None:
        return plain_bytes
    if _PLAIN_FROM_ENVIRONMENT is not None:
        return int(_PLAIN_FROM_ENVIRONMENT)
    if device.type == 'meta':  # which stands for the largest inputs
        return 0
    return PLAIN_BYTES['cpu' if device.type == 'cpu' else 'other']
