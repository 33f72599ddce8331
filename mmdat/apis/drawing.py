"""Predictions drawn over pictures, in time and memory that are those of a picture of bounded size."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

#: The longest side of a drawing; larger pictures are drawn smaller.
DRAWN_SIDE = 2000
_PANOPTIC_OFFSET = 1000  # mmdet numbers a segment: its class plus so many times its number


def drawn_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the drawing of a picture."""
    scale = min(1.0, DRAWN_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrink(picture: np.ndarray) -> np.ndarray:
    """A picture ``(H, W, 3)`` in the size that it is drawn in."""
    height, width = drawn_size(*picture.shape[:2])
    if (height, width) == picture.shape[:2]:
        return picture
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def shrink_map(data: Tensor) -> Tensor:
    """Masks or a label map ``(..., H, W)`` in that size, by the nearest pixel."""
    size = data.shape[-2:]
    rows, cols = [
        ((torch.arange(new) + 0.5) * old / new).long().clamp(max=old - 1) for new, old in zip(drawn_size(*size), size)
    ]
    return data[..., rows[:, None], cols]


def draw_objects(
    rgb: np.ndarray, sample: Any, classes: Sequence[str], palette: Sequence[Sequence[int]], score_thr: float
) -> np.ndarray:
    """Boxes, masks and panoptic segments of a detector.

    Args:
        rgb: The picture, ``(H, W, 3)`` uint8, in the size that it is drawn in.
        sample: The prediction, in the size of the photo.
        classes: Names of the classes.
        palette: Their RGB colours.
        score_thr: Objects below this score are left out.
    """
    picture = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    colour = lambda labels: [tuple(palette[label % len(palette)]) for label in labels]  # noqa: E731
    found = sample.pred_instances if 'pred_instances' in sample else None
    if found is not None:
        found = found[found.scores >= score_thr]
    if 'pred_panoptic_seg' in sample:
        segments = shrink_map(torch.as_tensor(sample.pred_panoptic_seg.sem_seg)[0])
        ids = [one for one in segments.unique().tolist() if one % _PANOPTIC_OFFSET < len(classes)]
        masks, labels = [segments == one for one in ids], [one % _PANOPTIC_OFFSET for one in ids]
    elif found is not None and len(found) and 'masks' in found:
        masks, labels = [shrink_map(torch.as_tensor(mask)) for mask in found.masks], found.labels.tolist()
    else:
        masks = []
    if masks:
        picture = draw_segmentation_masks(picture, torch.stack(masks).bool(), alpha=0.5, colors=colour(labels))
    if found is not None and len(found):
        height, width = sample.ori_shape[:2] if 'ori_shape' in sample else rgb.shape[:2]
        scale = torch.tensor([rgb.shape[1] / width, rgb.shape[0] / height] * 2)
        labels = found.labels.tolist()
        texts = [f'{classes[label]} {score:.2f}' for label, score in zip(labels, found.scores.tolist())]
        picture = draw_bounding_boxes(picture, found.bboxes * scale, texts, colour(labels), width=2)
    return picture.permute(1, 2, 0).numpy()


def draw_label_map(
    rgb: np.ndarray, labels: np.ndarray, classes: Sequence[str], palette: Sequence[Sequence[int]]
) -> np.ndarray:
    """A label map in colours, and the name of each class at the pixel that is furthest inside of it.

    Args:
        rgb: The picture, ``(H, W, 3)`` uint8.
        labels: The classes of its pixels, ``(H, W)``.
        classes: Names of the classes.
        palette: Their RGB colours.
    """
    drawn = cv2.addWeighted(rgb, 0.4, np.array(palette, dtype=np.uint8)[labels], 0.6, 0)
    height, width = labels.shape
    scale = max(0.35, max(height, width) / 1600)
    for label in np.unique(labels):
        region = np.pad(labels == label, 1).astype(np.uint8)
        inside = cv2.distanceTransform(region, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(inside.argmax(), inside.shape)
        (across, up), _ = cv2.getTextSize(classes[label], cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        place = int(np.clip(x - across // 2, 0, max(width - across, 0))), int(np.clip(y + up // 2, up, height - 1))
        for colour, thickness in ((0, 0, 0), 3), ((255, 255, 255), 1):
            stroke = round(thickness * max(1.0, scale))
            cv2.putText(drawn, classes[label], place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, stroke, cv2.LINE_AA)
    return drawn
