"""Rotated boxes ``(x, y, width, height, angle)``: centre, size, and angle in radians, clockwise on the screen."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from .boxes import as_float32, best_first
from .precision import full, gradients

#: Pairs of boxes whose overlap is computed, and samples of regions, at a time: about 100 MB.
_CHUNK = 1 << 15
#: Pairs of boxes whose distance is computed at a time.
_PAIRS = 1 << 22
#: What makes coincident borders differ, as a part of the longest edge. Rounding in float64 is far below.
_MARGIN = 1e-9


def _corners(boxes: Tensor) -> Tensor:
    """``(n, 5)`` -> ``(n, 4, 2)``, in order around the box."""
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return boxes[:, None, :2] + _rotate(boxes[:, None, 2:4] * signs, boxes[:, 4:])


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Points ``(n, k, 2)``, turned around the origin by ``angle`` (n, 1)."""
    cos, sin = angle.cos(), angle.sin()
    x, y = points.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1)


def _area_of_inner_edges(corners: Tensor, boxes: Tensor) -> Tensor:
    """The signed area between the origin and the parts of edges around ``corners`` (n, 4, 2) that are in ``boxes``."""
    edges = corners.roll(-1, 1) - corners
    half = boxes[:, None, 2:4] / 2
    start, direction = _rotate(corners - boxes[:, None, :2], -boxes[:, 4:]), _rotate(edges, -boxes[:, 4:])
    direction = direction.masked_fill(direction == 0, torch.finfo(direction.dtype).tiny)
    # An edge is start + t * direction, t from 0 to 1. Between which t does it lie between opposite sides?
    one, other = (-half - start) / direction, (half - start) / direction
    enter = torch.minimum(one, other).amax(-1).clamp(min=0)
    leave = torch.maximum(one, other).amin(-1).clamp(max=1)
    cross = corners[..., 0] * edges[..., 1] - edges[..., 0] * corners[..., 1]
    return (cross * (leave - enter).clamp(min=0)).sum(1) / 2


def _intersections(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """The area that each of ``boxes1`` (n, 5) has in common with its partner of ``boxes2`` (n, 5), both in float64.

    By Green's theorem: the border of what two boxes have in common is those parts of each one's border that are in the
    other one. Borders that coincide are no special case, as the second box is made larger by less than rounding in
    float32 would.
    """
    middle = (boxes1[:, :2] + boxes2[:, :2]) / 2  # coordinates around it have fewer digits before the point
    boxes1 = torch.cat([boxes1[:, :2] - middle, boxes1[:, 2:]], 1)
    margin = _MARGIN * torch.maximum(boxes1[:, 2:4], boxes2[:, 2:4]).amax(1, keepdim=True)
    boxes2 = torch.cat([boxes2[:, :2] - middle, boxes2[:, 2:4] + margin, boxes2[:, 4:]], 1)
    area = _area_of_inner_edges(_corners(boxes1), boxes2) + _area_of_inner_edges(_corners(boxes2), boxes1)
    return area.clamp(min=0)


def _near(boxes1: Tensor, boxes2: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices of boxes whose circumscribed circles meet, in rising order: no other pairs have anything in common."""
    radius1, radius2 = boxes1[:, 2:4].norm(dim=1) / 2, boxes2[:, 2:4].norm(dim=1) / 2
    for rows in torch.arange(len(boxes1), device=boxes1.device).split(max(1, _PAIRS // max(1, len(boxes2)))):
        distance = (boxes1[rows, None, :2] - boxes2[None, :, :2]).norm(dim=-1)
        near = (distance <= (radius1[rows, None] + radius2) * 1.001).nonzero()
        for some in near.split(_CHUNK):
            yield rows[some[:, 0]], some[:, 1]


def _ious(boxes1: Tensor, boxes2: Tensor, of_first: bool = False) -> Tensor:
    """Intersection over union (or over the first box) of ``boxes1`` (n, 5) with their partners of ``boxes2`` (n, 5)."""
    common = _intersections(boxes1[:, :5].double(), boxes2[:, :5].double()).to(boxes1.dtype)
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    iou = common / (area1 if of_first else area1 + area2 - common)
    return iou.masked_fill((area1 < 1e-14) | (area2 < 1e-14), 0)


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Intersection over union (mode 0) or over the first box (mode 1), written into ``ious``.

    Args:
        boxes1: ``(n, 5)``.
        boxes2: ``(m, 5)``.
        ious: ``(n * m,)``, or ``(n,)`` where ``aligned``: of box i with box i.
    """
    boxes1, boxes2, of_first = full(boxes1), full(boxes2), mode_flag == 1
    if aligned:
        pairs = torch.arange(len(boxes1), device=boxes1.device).split(_CHUNK)
        ious.copy_(torch.cat([_ious(boxes1[some], boxes2[some], of_first) for some in pairs]))
        return
    matrix = ious.zero_().view(len(boxes1), len(boxes2))
    for row, column in _near(boxes1, boxes2):
        matrix[row, column] = _ious(boxes1[row], boxes2[column], of_first).to(ious)


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Non-maximum suppression of rotated boxes.

    Args:
        dets: ``(n, 5)``, or ``(n, 6)`` with the label behind where ``multi_label``.
        scores: ``(n,)``.
        labels: ``(n,)`` where ``multi_label``: only boxes of one label suppress each other, as in mmcv's CUDA
            operator; its CPU operator takes no notice of labels.
        iou_threshold: A box goes where its IoU with a better one is at least this.

    Returns:
        The indices of the boxes kept, int64, best first.
    """
    order = best_first(full(scores))
    boxes, threshold = full(dets)[order], as_float32(iou_threshold)
    suppressed_by = [[] for _ in range(len(boxes))]
    for better, worse in _near(boxes, boxes):
        pairs = better < worse
        if multi_label:
            pairs &= labels[order[better]] == labels[order[worse]]
        better, worse = better[pairs], worse[pairs]
        overlap = _ious(boxes[better], boxes[worse]) >= threshold
        for i, j in zip(better[overlap].tolist(), worse[overlap].tolist()):
            suppressed_by[i].append(j)
    keep = [True] * len(boxes)
    for i, others in enumerate(suppressed_by):
        if keep[i]:
            for j in others:
                keep[j] = False
    return order[torch.tensor(keep, dtype=torch.bool, device=order.device)]


def _sample(features: Tensor, rois: Tensor, size: tuple, grid: tuple, scale: float, aligned: bool, sign: int) -> Tensor:
    """Averages of ``grid`` samples in each bin of regions that all have the same number of them: ``(n, c, *size)``."""
    batch, channels, height, width = features.shape
    center = rois[:, 1:3] * scale - (0.5 if aligned else 0.0)
    extent = rois[:, 3:5] * scale
    if not aligned:
        extent = extent.clamp(min=1)
    steps = [
        (torch.arange(bins * samples, device=rois.device, dtype=rois.dtype) + 0.5) / (bins * samples) - 0.5
        for bins, samples in zip(size, grid)
    ]
    yy = (steps[0] * extent[:, 1:]).view(-1, size[0], 1, grid[0], 1)
    xx = (steps[1] * extent[:, :1]).view(-1, 1, size[1], 1, grid[1])
    cos, sin = (sign * rois[:, 5]).cos().view(-1, 1, 1, 1, 1), (sign * rois[:, 5]).sin().view(-1, 1, 1, 1, 1)
    y = yy * cos - xx * sin + center[:, 1].view(-1, 1, 1, 1, 1)
    x = yy * sin + xx * cos + center[:, 0].view(-1, 1, 1, 1, 1)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    top, left = top.long(), left.long()
    bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    first = rois[:, 0].long().view(-1, 1, 1, 1, 1) * (height * width)
    corners = torch.stack([top * width + left, top * width + end, bottom * width + left, bottom * width + end], dim=-1)
    weights = torch.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=-1)
    weights = weights * inside[..., None] / (grid[0] * grid[1])
    pixels = features.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    indices = (corners + first[..., None]).reshape(-1, grid[0] * grid[1] * 4)
    bins = embedding_bag(indices, pixels, per_sample_weights=weights.reshape(indices.shape), mode='sum')
    return bins.view(-1, *size, channels).permute(0, 3, 1, 2)


def _roi_align_rotated(
    features: Tensor, rois: Tensor, size: tuple, scale: float, sampling_ratio: int, aligned: bool, clockwise: bool
) -> Tensor:
    if sampling_ratio > 0:
        grids = torch.full((len(rois), 2), sampling_ratio)
    else:
        extent = rois[:, [4, 3]] * scale
        extent = extent if aligned else extent.clamp(min=1)
        grids = (extent / extent.new_tensor(size)).ceil().long().cpu()
    output = features.new_zeros(len(rois), features.shape[1], *size)
    for grid in grids.unique(dim=0).tolist():
        if 0 in grid:  # a region without area has no samples
            continue
        some = (grids == torch.tensor(grid)).all(1).nonzero()[:, 0].to(rois.device)
        for part in some.split(max(1, _CHUNK // (size[0] * size[1] * grid[0] * grid[1]))):
            averages = _sample(features, rois[part], size, tuple(grid), scale, aligned, -1 if clockwise else 1)
            output = output.index_copy(0, part, averages)
    return output


def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """RoIAlign of rotated regions, written into ``output`` (n, c, pooled_height, pooled_width).

    Args:
        input: ``(b, c, h, w)``.
        rois: ``(n, 6)``: the index in the batch, then the rotated box.
        sampling_ratio: Samples in each direction of a bin; 0 for about one per pixel.
        aligned: Pixels have their centre at 0.5, not at 0.
        clockwise: The direction of positive angles.
    """
    features, size = full(input), (pooled_height, pooled_width)
    output.copy_(
        _roi_align_rotated(features, full(rois).to(features), size, spatial_scale, sampling_ratio, aligned, clockwise)
    )


def roi_align_rotated_backward(
    grad_output: Tensor,
    rois: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """The gradient for the input, written into ``grad_input``. Averages are linear, so it does not need the input."""
    regions, size = full(rois), (pooled_height, pooled_width)

    def align(features: Tensor) -> Tensor:
        return _roi_align_rotated(
            features, regions.to(features), size, spatial_scale, sampling_ratio, aligned, clockwise
        )

    grad_input.copy_(gradients(align, [torch.zeros_like(grad_input)], grad_output)[0])
