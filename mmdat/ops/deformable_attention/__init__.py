"""Attention of every pixel to the sampled keys (DAT, section 3.2, eqs. 5 to 7).

``naive.py`` is the specification. ``tiled.py`` computes the same for maps with a table as position bias (with
``table_patches.py``), ``chunked.py`` for any other bias, and for signals and volumes; both in memory linear in the
number of pixels.
"""

from .interface import choose_deformable_attention, deformable_attention

__all__ = ['choose_deformable_attention', 'deformable_attention']
