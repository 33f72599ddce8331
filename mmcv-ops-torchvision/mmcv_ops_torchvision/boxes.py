"""Overlaps of axis-parallel boxes ``(x1, y1, x2, y2)``, and what is kept of many of them.

An ``offset`` of 1 counts pixels: a box from 3 to 5 is 3 wide.
"""

from typing import Callable

import numpy as np
import torch
import torchvision
from torch import Tensor

from .precision import full


def _ious(boxes1: Tensor, boxes2: Tensor, offset: int, of_first: bool = False) -> Tensor:
    """Intersection over union (or over the first box), for shapes ``(..., 4)`` that broadcast."""
    left_top = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    right_bottom = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    overlap = (right_bottom - left_top + offset).clamp(min=0).prod(-1)
    area1 = (boxes1[..., 2:] - boxes1[..., :2] + offset).prod(-1)
    if of_first:
        return overlap / area1
    area2 = (boxes2[..., 2:] - boxes2[..., :2] + offset).prod(-1)
    return overlap / (area1 + area2 - overlap)


def as_float32(threshold: float) -> float:
    """The threshold as compiled mmcv holds it: 0.6 and a float32 IoU of 0.6 are equal."""
    return float(np.float32(threshold))


def best_first(scores: Tensor) -> Tensor:
    """The order of ``scores`` (n,), by the call that compiled mmcv makes: equal ones are in any order."""
    return scores.sort(0, descending=True).indices


def suppress(
    order: Tensor, overlaps: Callable[[int, Tensor], Tensor], keep_group: Callable[[int, Tensor], None]
) -> None:
    """Greedy suppression: keep the first of ``order``, drop those that overlap with it, and go on with the others.

    Args:
        order: Indices, best first.
        overlaps: For an index and the indices behind it, a mask of those that it suppresses.
        keep_group: Called with each index that is kept and the indices that it suppressed.
    """
    while len(order):
        index, order = int(order[0]), order[1:]
        mask = overlaps(index, order)
        keep_group(index, order[mask])
        order = order[~mask]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.
        iou_threshold: A box goes where its IoU with a better one is larger.
        offset: 0 or 1.

    Returns:
        The indices of the boxes kept, int64, best first.
    """
    boxes, order, threshold = full(boxes), best_first(full(scores)), as_float32(iou_threshold)
    if offset == 0:
        # torchvision takes the first of equal scores first: ranks in their place are never equal.
        ranks = torch.arange(len(order), 0, -1, device=boxes.device, dtype=boxes.dtype)
        return order[torchvision.ops.nms(boxes[order], ranks, threshold)]
    # torchvision has no offset, and boxes larger by 1 would be rounded in another way. Rarely used: on the CPU.
    device, boxes, kept = boxes.device, boxes.cpu(), []
    suppress(
        order.cpu(),
        lambda index, others: _ious(boxes[index], boxes[others], offset) > threshold,
        lambda index, _: kept.append(index),
    )
    return torch.tensor(kept, dtype=torch.int64, device=device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression of ``(n, 5)`` boxes with scores: each index kept, followed by those it suppressed."""
    boxes, threshold, groups = full(dets[:, :4]).cpu(), as_float32(iou_threshold), []
    suppress(
        best_first(full(dets[:, 4]).cpu()),
        lambda index, others: _ious(boxes[index], boxes[others], 0) >= threshold,
        lambda index, others: groups.append([index, *others.tolist()]),
    )
    return groups


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: a box's score falls with its overlap with better ones, until it is below ``min_score``.

    Boxes are exchanged and moved as in compiled mmcv, for of equal scores the first in that order is taken.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.
        dets: ``(n, 5)``, gets the kept boxes with their new scores, in its first rows.
        iou_threshold: Methods 0 and 1 change the scores of boxes with at least this IoU.
        sigma: The width of method 2.
        min_score: Boxes below it go.
        method: 0 to drop boxes (naive), 1 to scale by ``1 - IoU`` (linear), 2 by ``exp(-IoU² / sigma)`` (gaussian).
        offset: 0 or 1.

    Returns:
        The indices of the boxes kept, int64, best first.
    """
    sorted_boxes, sorted_scores = full(boxes.cpu()).clone(), full(scores.cpu()).numpy().copy()
    rows = sorted_boxes.numpy()
    indices = np.arange(len(rows))
    threshold, count, i = as_float32(iou_threshold), len(rows), 0
    while i < count:
        best = i + int(sorted_scores[i:count].argmax())
        for array in (rows, sorted_scores, indices):
            array[[i, best]] = array[[best, i]]
        overlap = _ious(sorted_boxes[i], sorted_boxes[i + 1 : count], offset).numpy()
        if method == 2:
            weight = np.exp(-(overlap * overlap) / overlap.dtype.type(sigma))
        else:
            weight = np.where(overlap >= threshold, (1 - overlap) * method, overlap.dtype.type(1))
        sorted_scores[i + 1 : count] *= weight
        keep = ~(sorted_scores[i + 1 : count] < min_score)
        kept = i + 1 + int(keep.sum())
        # The last boxes move to where boxes go.
        gaps = i + 1 + np.flatnonzero(~keep[: kept - i - 1])
        fillers = kept + np.flatnonzero(keep[kept - i - 1 :])[::-1]
        for array in (rows, sorted_scores, indices):
            array[gaps] = array[fillers]
        count, i = kept, i + 1
    dets[:count, :4] = sorted_boxes[:count].to(dets)
    dets[:count, 4] = torch.from_numpy(sorted_scores[:count]).to(dets)
    return torch.from_numpy(indices[:count]).to(boxes.device)


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Intersection over union (mode 0) or over the first box (mode 1), written into ``ious``.

    Args:
        bboxes1: ``(n, 4)``.
        bboxes2: ``(m, 4)``.
        ious: ``(n, m)``, or ``(n,)`` where ``aligned``: of box i with box i.
    """
    bboxes1, bboxes2 = full(bboxes1), full(bboxes2)
    ious.copy_(_ious(bboxes1 if aligned else bboxes1[:, None], bboxes2, offset, of_first=mode == 1))
