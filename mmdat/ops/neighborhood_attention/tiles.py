"""How an axis of a map is cut into tiles of queries and the windows of keys that they see.

All of this follows from the size of the map; it is plain Python, and cheap.
"""
from functools import lru_cache
from typing import List, NamedTuple, Optional, Sequence, Tuple

#: Side of a tile. Larger ones waste more products on keys that a query does not see, smaller ones load more keys.
TILE = 8


class Run(NamedTuple):
    """Tiles from ``start`` to ``stop`` that see their windows in the same way.

    Attributes:
        start, stop: Which tiles.
        relative: For each query of a tile and key of its window, the row of the bias table (key minus query), or None
            where the query does not see the key; ``(TILE, window_side)``.
    """
    start: int
    stop: int
    relative: Tuple[Tuple[Optional[int], ...], ...]

    def among(self, tiles: slice) -> slice:
        """Those of some tiles that belong to the run, counted from the first of them; maybe none."""
        start, stop = max(self.start, tiles.start), min(self.stop, tiles.stop)
        return slice(start - tiles.start, max(start, stop) - tiles.start)


class Axis(NamedTuple):
    """One axis of a map, padded so that all tiles are whole and all windows alike.

    Padding goes to both ends evenly. So at least half of a border tile lies within the map, and the window around it
    holds all that its queries see, although their neighbourhoods are shifted inwards. A query of the padding sees
    what the nearest one within the map sees.

    Attributes:
        before, after: Padding of the queries.
        margin: Further padding of the keys at both ends: how far a window reaches beyond its tile.
        tiles: Number of tiles.
        window_side: Keys of a window.
        runs: The tiles in order: one long run, and shorter ones at the borders.
    """
    before: int
    after: int
    margin: int
    tiles: int
    window_side: int
    runs: Tuple[Run, ...]


@lru_cache(maxsize=256)
def cut(size: int, kernel_size: int) -> Axis:
    """Cut an axis of ``size`` pixels."""
    padding = -size % TILE
    before = padding // 2
    margin = max(kernel_size // 2, kernel_size - TILE // 2)
    tiles, window_side = (size + padding) // TILE, TILE + 2 * margin
    runs: List[Run] = []
    for tile in range(tiles):
        place = tile * TILE - before
        relative = tuple(
            _relative(query, range(place - margin, place - margin + window_side), size, kernel_size)
            for query in range(place, place + TILE))
        if runs and runs[-1].relative == relative:
            runs[-1] = runs[-1]._replace(stop=tile + 1)
        else:
            runs.append(Run(tile, tile + 1, relative))
    return Axis(before, padding - before, margin, tiles, window_side, tuple(runs))


def _relative(query: int, keys: Sequence[int], size: int, kernel_size: int) -> Tuple[Optional[int], ...]:
    query = min(max(query, 0), size - 1)
    first = min(max(query - kernel_size // 2, 0), size - kernel_size)
    return tuple(key - query + kernel_size - 1 if first <= key < first + kernel_size else None for key in keys)
