"""How large the kernels' tiles are, by kernel, dtype, channels of a head and generation of processors.

They follow from what the compiler says of registers and shared memory, see docs/gpu.md: no values in registers may have
to be moved to memory and back (spilled) in the kernels that take queries, few in the ones that take keys. Other sizes
have not been timed.
"""

from typing import NamedTuple

import torch

from .availability import interpreted

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


#: Of deformable attention, the kernels that take a tile of queries to all keys (``'queries'``), and the one that takes
#: a tile of keys to all queries, squares of them (``'keys'``); ``'local'``, those of attention to pixels nearby, which
#: take a tile of SIDE x SIDE pixels to blocks of SIDE columns. Each in half precision or not, and with more than 32
#: channels of a head or not.
TILES = {
    ('queries', True, False): Settings(64, 64),
    ('queries', True, True): Settings(64, 32),
    ('queries', False, False): Settings(32, 32),
    ('queries', False, True): Settings(32, 32),
    ('keys', True, False): Settings(64, 64),
    ('keys', True, True): Settings(64, 64, num_warps=8),
    ('keys', False, False): Settings(16, 32),
    ('keys', False, True): Settings(16, 32, num_warps=8),
    # One stage: blocks are few, and loading ahead takes more registers than there are.
    ('local', True, False): Settings(64, 64, num_stages=1),
    ('local', True, True): Settings(64, 64, num_stages=1),
    ('local', False, False): Settings(64, 16, num_stages=1),
    ('local', False, True): Settings(64, 16, num_stages=1),
}
#: Of generations (the first number of the compute capability) that need others.
OTHER_TILES = {
    10: {
        ('queries', True, False): Settings(64, 64, num_stages=1),
        ('keys', True, False): Settings(64, 64, num_warps=8),
    }
}


def tiles(kernel: str, dtype: torch.dtype, channels: int, generation: int) -> Settings:
    """Of a kernel of :data:`TILES`."""
    case = kernel, dtype != torch.float32, channels > 32
    return OTHER_TILES.get(generation, {}).get(case, TILES[case])


def generation_of(device: torch.device) -> int:
    """The first number of a GPU's compute capability."""
    return 0 if interpreted() else torch.cuda.get_device_capability(device)[0]
