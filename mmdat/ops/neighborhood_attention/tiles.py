"""How an axis of a map is cut into tiles of queries and the windows of keys that they see.

All of this follows from the size of the map; it is plain Python, and cheap.
"""
from typing import List, NamedTuple

#: Side of a tile. Larger ones waste more products on keys that a query does not see, smaller ones load more keys.
TILE = 8


class Run(NamedTuple):
    """Neighbouring tiles that see their windows in the same way: one after the other, ``TILE`` apart.

    Attributes:
        tile: First query of the first tile.
        window: First key of the first window.
        count: Number of tiles.
        tile_side: Queries of each tile.
        window_side: Keys of each window.
        size: Length of the axis.
    """
    tile: int
    window: int
    count: int
    tile_side: int
    window_side: int
    size: int


def runs(size: int, kernel_size: int) -> List[Run]:
    """The tiles of an axis: at the borders, where windows are shifted inwards, in runs of their own."""
    window_side = min(TILE + kernel_size - 1, size)
    found: List[Run] = []
    previous = None
    for tile in range(0, size, TILE):
        tile_side = min(TILE, size - tile)
        window = min(max(tile - kernel_size // 2, 0), size - window_side)
        # Where the keys of each query begin, counted from the tile: what makes tiles differ.
        first = [min(max(i - kernel_size // 2, 0), size - kernel_size) - tile for i in range(tile, tile + tile_side)]
        if (window - tile, first) == previous:
            found[-1] = found[-1]._replace(count=found[-1].count + 1)
        else:
            found.append(Run(tile, window, 1, tile_side, window_side, size))
        previous = window - tile, first
    return found


def split(run: Run, count: int) -> List[Run]:
    """The run in runs of at most ``count`` tiles."""
    return [
        run._replace(tile=run.tile + i * TILE, window=run.window + i * TILE, count=min(count, run.count - i))
        for i in range(0, run.count, count)
    ]
