"""How an axis of a map is cut into tiles of queries and the ranges of keys that they see.

All of this follows from the size of the map; it is plain Python, and cheap. Axes are padded so that all tiles are
whole and all key ranges alike.
"""

from functools import lru_cache
from typing import Callable, NamedTuple, Optional

#: Side of a tile of queries to neighbourhoods. Larger ones waste more products on keys that a query does not see,
#: smaller ones load more keys.
TILE = 8


class Run(NamedTuple):
    """Tiles from ``start`` to ``stop`` that see their keys in the same way.

    Attributes:
        start, stop: Which tiles.
        relative: For each query of a tile and key of its range, the row of the bias table (key minus query), or None
            where the query does not see the key; ``(side, key_side)``.
    """

    start: int
    stop: int
    relative: tuple[tuple[Optional[int], ...], ...]

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

    def seen(query: int) -> range:
        first = min(max(query - kernel_size // 2, 0), size - kernel_size)
        return range(first, first + kernel_size)

    margin = max(kernel_size // 2, kernel_size - TILE // 2)
    return _cut(size, TILE, padding // 2, padding - padding // 2, margin, seen, kernel_size)


@lru_cache(maxsize=256)
def windows(size: int, window_size: int, shift: int) -> Axis:
    """An axis cut into windows; shifted, the first and the last window are parts only.

    (Rolling the map instead, as Swin does, makes one window of these two parts, which do not see each other.)
    """
    before, after = (window_size - shift, shift) if shift else (0, 0)

    def seen(query: int) -> range:
        first = (query + before) // window_size * window_size - before
        return range(max(first, 0), min(first + window_size, size))

    return _cut(size, window_size, before, after, 0, seen, window_size)


def _cut(size: int, side: int, before: int, after: int, margin: int, seen: Callable[[int], range], reach: int) -> Axis:
    """Cut an axis of ``size`` pixels of which ``seen`` says what they see, less than ``reach`` away."""
    tiles = (before + size + after) // side
    runs: list[Run] = []
    for tile in range(tiles):
        place = tile * side - before
        keys = range(place - margin, place + side + margin)
        relative = []
        for query in range(place, place + side):
            query = min(max(query, 0), size - 1)  # a query of the padding sees what the nearest one of the map sees
            relative.append(tuple(key - query + reach - 1 if key in seen(query) else None for key in keys))
        if runs and runs[-1].relative == tuple(relative):
            runs[-1] = runs[-1]._replace(stop=tile + 1)
        else:
            runs.append(Run(tile, tile + 1, tuple(relative)))
    return Axis(side, before, after, margin, tiles, tuple(runs))
