"""Attention of every pixel to the pixels around it (NAT; stages 1 to 3 of DAT++).

``naive.py`` is the specification; ``tiled.py`` computes the same, tile by tile.
"""
from .interface import neighborhood_attention

__all__ = ['neighborhood_attention']
