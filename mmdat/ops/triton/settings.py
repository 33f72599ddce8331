"""How large the kernels' tiles are, by dtype and channels of a head.

They follow from what the compiler says of registers and shared memory, see docs/gpu.md: no values in registers may have
to be moved to memory and back (spilled) in the kernels that take queries, few in the one that takes keys. No GPU has
timed them.
"""

from typing import NamedTuple

import torch

#: Side of the tiles of pixels of kernels that keep rows and columns apart.
SIDE = 8


class Settings(NamedTuple):
    """Of one kernel.

    Attributes:
        queries: Of a tile.
        keys: Of a tile.
        num_warps: Groups of 32 threads that share a tile.
        num_stages: How many tiles are on their way from memory.
    """

    queries: int
    keys: int
    num_warps: int = 4
    num_stages: int = 2


def query_settings(dtype: torch.dtype, channels: int) -> Settings:
    """Of the kernels of deformable attention that take a tile of queries to all keys."""
    if dtype == torch.float32:
        return Settings(32, 32)
    return Settings(64, 64 if channels <= 32 else 32)


def key_settings(dtype: torch.dtype, channels: int) -> Settings:
    """Of the kernel of deformable attention that takes a tile of keys to all queries, squares of them."""
    if dtype == torch.float32:
        return Settings((SIDE // 2) ** 2, 32, num_warps=4 if channels <= 32 else 8)
    return Settings(SIDE**2, 64, num_warps=4 if channels <= 32 else 8)


def local_settings(dtype: torch.dtype, channels: int) -> Settings:
    """Of the kernels of attention to pixels nearby, which take squares to squares."""
    # One stage: squares are few, and loading ahead takes more registers than there are.
    return Settings(SIDE**2, SIDE**2, num_warps=8 if dtype == torch.float32 else 4, num_stages=1)
