"""Attention of every pixel to pixels near it: within windows (L, S) or to its neighbourhood (N).

``naive.py`` is the specification; ``tiled.py`` computes the same, tile by tile.
"""

from .interface import choose_neighborhood_attention, choose_window_attention, neighborhood_attention, window_attention

__all__ = ['choose_neighborhood_attention', 'choose_window_attention', 'neighborhood_attention', 'window_attention']
