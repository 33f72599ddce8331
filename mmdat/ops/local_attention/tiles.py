"""How an axis of a map is cut into tiles of queries and the ranges of keys that they see.

All of this follows from the size of the map; it is plain Python, and cheap. Axes are padded so that all tiles are
whole and all key ranges alike.
"""

from functools import lru_cache
from typing import NamedTuple, Optional

#: Side of a tile of queries to neighbourhoods. Larger ones waste more products on keys that a query does not see,
#: smaller ones load more keys.
TILE = 8


class Run(NamedTuple):
    """Tiles from ``start`` to ``stop`` that see their keys in the same way.

    Attributes:
        start, stop: Which tiles.
        relative: For each query of a tile and key of its range, the row of the bias table (key minus query), or None
            where the query does not see the key; ``(side, key_side)``.
        apart: Whether the two come from different sides of the map, as in the last of shifted windows;
            ``(side, key_side)``.
    """

    start: int
    stop: int
    relative: tuple[tuple[Optional[int], ...], ...]
    apart: tuple[tuple[bool, ...], ...]

    def among(self, tiles: slice) -> slice:
        """Those of some tiles that belong to the run, counted from the first of them; maybe none."""
        start, stop = max(self.start, tiles.start), min(self.stop, tiles.stop)
        return slice(start - tiles.start, max(start, stop) - tiles.start)


class Axis(NamedTuple):
    """One axis of a map.

    Attributes:
        side: Queries of a tile.
        before, after: Padding of the queries.
        margin: Further padding of the keys at both ends: how far a range of keys reaches beyond its tile.
        tiles: Number of tiles.
        runs: The tiles in order: one long run, and shorter ones at the borders.
    """

    side: int
    before: int
    after: int
    margin: int
    tiles: int
    runs: tuple[Run, ...]

    @property
    def key_side(self) -> int:
        """Keys of a range."""
        return self.side + 2 * self.margin


@lru_cache(maxsize=256)
def neighborhoods(size: int, kernel_size: int) -> Axis:
    """An axis whose queries see the ``kernel_size`` keys around them, shifted inwards at the borders.

    Padding goes to both ends evenly. So at least half of a border tile lies within the map, and the range around it
    holds all that its queries see, although their neighbourhoods are shifted inwards.
    """
    padding = -size % TILE
    before = padding // 2
    margin = max(kernel_size // 2, kernel_size - TILE // 2)
    tiles = (size + padding) // TILE
    runs: list[Run] = []
    for tile in range(tiles):
        place = tile * TILE - before
        relative = []
        for query in range(place, place + TILE):
            query = min(max(query, 0), size - 1)  # a query of the padding sees what the nearest one of the map sees
            first = min(max(query - kernel_size // 2, 0), size - kernel_size)
            seen = range(first, first + kernel_size)
            keys = range(place - margin, place + TILE + margin)
            relative.append(tuple(key - query + kernel_size - 1 if key in seen else None for key in keys))
        if runs and runs[-1].relative == tuple(relative):
            runs[-1] = runs[-1]._replace(stop=tile + 1)
        else:
            runs.append(Run(tile, tile + 1, tuple(relative), ((False,) * (TILE + 2 * margin),) * TILE))
    return Axis(TILE, before, padding - before, margin, tiles, tuple(runs))


@lru_cache(maxsize=256)
def windows(size: int, window_size: int, shift: int) -> Axis:
    """An axis cut into windows, of a map that is rolled by the shift: the last window has pixels of both ends."""
    side = range(window_size)
    tiles = size // window_size
    relative = tuple(tuple(key - query + window_size - 1 for key in side) for query in side)
    apart = tuple(tuple((query < window_size - shift) != (key < window_size - shift) for key in side) for query in side)
    together = ((False,) * window_size,) * window_size
    runs = [Run(0, tiles, relative, together)]
    if shift:
        runs = [Run(0, tiles - 1, relative, together), Run(tiles - 1, tiles, relative, apart)]
    return Axis(window_size, 0, 0, 0, tiles, tuple(runs))
