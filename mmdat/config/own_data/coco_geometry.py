"""Boxes of a whole file in COCO format: the signs that they are written in another way, and how many can be learnt."""

from typing import Any, Optional

import numpy as np
from pycocotools import mask as coco_mask

from mmdat.datasets.coco_objects import encoded, is_read, polygons_read
from mmdat.errors import RunError

from .coco_fields import Completed


def _arrays(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, and width and height of their images, ``(N, 4)`` and ``(N, 2)``."""
    sizes = {image['id']: (image['width'], image['height']) for image in data['images']}
    boxes = np.array([annotation['bbox'] for annotation in data['annotations']], dtype=float).reshape(-1, 4)
    of_images = [sizes[annotation['image_id']] for annotation in data['annotations']]
    return boxes, np.array(of_images, dtype=float).reshape(-1, 2)


def check_boxes(completed: Completed) -> None:
    """Refuse boxes that are fractions of the image, or two corners.

    Raises:
        RunError: If all boxes of the file say so together.
    """
    data, file = completed.data, completed.file
    boxes, sizes = _arrays(data)
    first = f'annotations[0] (id {data["annotations"][0].get("id")}) has {data["annotations"][0]["bbox"]}'
    if (boxes >= 0).all() and boxes.max() <= 1.0 and sizes.min() > 8:
        raise RunError(
            f'{file} has boxes that are fractions of the image, where {first}: COCO has x, y, width, height in pixels; '
            f'multiply them by width and height'
        )
    corner, extent = boxes[:, :2], boxes[:, 2:]
    beyond = (corner + extent > sizes + 1).any(1)
    as_corners = (corner >= -1).all() and (extent > corner).all() and (extent <= sizes + 1).all()
    if as_corners and (beyond.mean() > 0.2 or _masks_say_corners(data, boxes)):
        raise RunError(
            f'{file} has boxes in the form x1, y1, x2, y2, where {first}: {int(beyond.sum())} of {len(boxes)} reach '
            f'out of their images as x, y, width, height; write them as such'
        )


def _masks_say_corners(data: dict[str, Any], boxes: np.ndarray) -> bool:
    """Whether the polygons lie in most boxes as two corners, but not as x, y, width, height."""
    agree = []
    for annotation, box in zip(data['annotations'], boxes):
        mask = annotation.get('segmentation')
        polygons = [one for one in mask if len(one) >= 6 and len(one) % 2 == 0] if isinstance(mask, list) else []
        if polygons:
            last = np.concatenate(polygons).reshape(-1, 2).max(0)
            agree.append(np.abs(box[2:] - last).max() <= 2 < np.abs(box[:2] + box[2:] - last).max())
    return len(agree) > 0 and np.mean(agree) > 0.5


def learnable(completed: Completed) -> dict[str, int]:
    """How many objects are learnt, and how many are not by each reason, by the rules of mmdet's CocoDataset."""
    learnt, dropped = _learnt(completed)
    return dict(learnt=int(learnt.sum()), **dropped)


def _learnt(completed: Completed) -> tuple[np.ndarray, dict[str, int]]:
    """Which objects are learnt, and how many are not by each reason."""
    data = completed.data
    boxes, sizes = _arrays(data)
    flags = {
        key: np.array([bool(annotation.get(key)) for annotation in data['annotations']])
        for key in ('ignore', 'iscrowd')
    }
    inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
    reasons = {
        'marked ignore': flags['ignore'],
        'outside of the image': (inside <= 0).any(1) & (boxes[:, 2:] >= 1).all(1),
        'smaller than a pixel': (boxes[:, 2:] < 1).any(1),
        'marked iscrowd, which is never learnt': flags['iscrowd'],
    }
    if completed.masks:
        unread = [not is_read(annotation.get('segmentation')) for annotation in data['annotations']]
        reasons['without a polygon of three points or more'] = np.array(unread, dtype=bool)
    left = np.ones(len(boxes), dtype=bool)
    counts = {}
    for reason, where in reasons.items():
        counts[reason] = int((left & where).sum())
        left &= ~where
    return left, counts


def without_masks_as_crowd(completed: Completed) -> None:
    """Mark objects whose mask cannot be read as crowd: mmdet leaves them out, but COCO's metrics would fail on them."""
    if not completed.masks:
        return
    for one in completed.data['annotations']:
        if not is_read(one.get('segmentation')):
            x, y, width, height = one['bbox']
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            one.update(iscrowd=1, segmentation=[corners])
            completed.changes.append('marked as crowd')


def check_masks(completed: Completed) -> Optional[str]:
    """A sentence on masks without a pixel in their boxes, if there are such among those that are learnt.

    Raises:
        RunError: If they are most of them.
    """
    if not completed.masks:
        return None
    sizes = {image['id']: (image['height'], image['width']) for image in completed.data['images']}
    learnt = [one for one, is_learnt in zip(completed.data['annotations'], _learnt(completed)[0]) if is_learnt]
    empty = [one for one in learnt if not _meets_box(one, *sizes[one['image_id']])]
    if not empty:
        return None
    found = (
        f'{len(empty)} of {len(learnt)} masks of {completed.file} have no pixel in their boxes, such as that of the id '
        f'{empty[0]["id"]}'
    )
    if 2 * len(empty) > len(learnt):
        raise RunError(f'{found}: bbox and segmentation must be in pixels of the same image; correct one of them')
    return f'{found}: they are learnt as empty masks.'


def _meets_box(annotation: dict[str, Any], height: int, width: int) -> bool:
    """Whether a mask has a pixel in its box."""
    mask, (x, y, w, h) = annotation['segmentation'], annotation['bbox']
    polygons = polygons_read(mask) if isinstance(mask, list) else []
    points = np.concatenate([np.reshape(one, (-1, 2)) for one in polygons]) if polygons else None
    if points is not None and min(points.max(0) - points.min(0)) >= 2:
        (left, top), (right, bottom) = points.min(0), points.max(0)
    else:  # it may have no pixel at all
        left, top, *size = coco_mask.toBbox(encoded(mask, height, width))
        right, bottom = left + size[0], top + size[1]
    return bool(max(left, x) < min(right, x + w) and max(top, y) < min(bottom, y + h))
