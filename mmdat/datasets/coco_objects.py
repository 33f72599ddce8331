"""Boxes and masks of annotations in COCO format: numbers that pycocotools would not survive."""

from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
from pycocotools import mask as coco_mask

# A coordinate may lie outside of its image by so many times the image's longer side.
MARGIN = 4


def coordinates_fault(values: Any, what: str, height: int, width: int) -> Optional[str]:
    """What is wrong with the coordinates of a box or polygon in an image of that size, if anything."""
    limit = MARGIN * max(height, width)
    try:
        if (np.abs(np.asarray(values, dtype=float)) <= limit).all():
            return None
    except (TypeError, ValueError, OverflowError):
        pass
    for value in values if isinstance(values, (list, tuple)) else [values]:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float('nan')
        if not np.isfinite(number):
            return f'{repr(value)[:40]} in {what}: coordinates must be finite numbers'
        if abs(number) > limit:
            return (
                f'{number:g} in {what}, far outside of the image of {height}x{width} pixels: correct it, or remove it'
            )
    return None


def mask_fault(mask: Any, height: int, width: int) -> Optional[str]:
    """What is wrong with the numbers of a mask, polygons or RLE, if anything."""
    if isinstance(mask, dict):
        return rle_fault(mask, height, width)
    for polygon in mask if isinstance(mask, list) else []:
        fault = coordinates_fault(polygon, 'segmentation', height, width)
        if fault:
            return fault
    return None


def rle_fault(mask: dict, height: int, width: int) -> Optional[str]:
    """What is wrong with an RLE, if anything: it must count each pixel of its image once."""
    size, counts = mask.get('size'), mask.get('counts')
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        return f'a mask (RLE) of the size {size!r}, but its image has {height}x{width} pixels: correct it'
    counts = counts.decode(errors='replace') if isinstance(counts, bytes) else counts
    runs = counts if isinstance(counts, list) else list(_runs(counts)) if isinstance(counts, str) else [None]
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        return f'a mask whose RLE does not count {height * width} pixels: correct it'
    return None


def polygons_read(mask: list) -> list[list[float]]:
    """The polygons that mmdet's loader takes: it leaves out those of fewer than three points, or of half a point."""
    return [polygon for polygon in mask if len(polygon) >= 6 and len(polygon) % 2 == 0]


def is_read(mask: Any) -> bool:
    """Whether mmdet's loader takes a mask; it ignores the object otherwise."""
    return isinstance(mask, dict) or bool(polygons_read(mask or []))


def encoded(mask: Any, height: int, width: int) -> Optional[dict]:
    """A mask as compressed RLE; None where there is none that is read."""
    if not is_read(mask):
        return None
    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(polygons_read(mask), height, width))
    return coco_mask.frPyObjects(mask, height, width) if isinstance(mask['counts'], list) else mask


def _runs(text: str) -> Iterator[Optional[int]]:
    """The runs of COCO's compressed RLE: pycocotools would decode a forged text without looking at its sum."""
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 50:
            yield None
            return
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        yield value
        value = shift = 0
    if shift:
        yield None
