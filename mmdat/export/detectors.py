"""mmdet's detectors as plain functions of tensors, from a preprocessed image to boxes, scores, labels and masks.

mmdet's own ``predict`` decides by lengths of Python lists how many boxes there are, which a trace would keep from its
example. What follows computes the same with tensors only: the layers, anchors and box coders are mmdet's, the
operators torchvision's, which have an ONNX form.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.models.dense_heads import AnchorHead, RPNHead
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor
from torchvision.ops import nms, roi_align

from mmdat.errors import RunError

#: Boxes ``(N, 4)`` as x1, y1, x2, y2 in pixels of the input, scores ``(N,)`` and labels ``(N,)``, best first.
Found = tuple[Tensor, Tensor, Tensor]


class OneStage(nn.Module):
    """RetinaNet, or another detector whose head is an :class:`mmdet.models.dense_heads.AnchorHead`.

    Args:
        detector: The detector in eval mode.

    Raises:
        RunError: If its head or its test settings are of another kind.
    """

    outputs = ('boxes', 'scores', 'labels')

    def __init__(self, detector: SingleStageDetector):
        super().__init__()
        head = detector.bbox_head
        if not isinstance(head, AnchorHead) or not hasattr(head, 'prior_generator'):
            raise RunError(
                f'a whole detector with {type(head).__name__} cannot be exported: only heads with anchors can'
            )
        self.detector = detector
        self.cfg = detector.bbox_head.test_cfg
        check_nms(self.cfg.nms)

    def forward(self, image: Tensor, size: Tensor) -> Found:
        """Detect.

        Args:
            image: ``(1, 3, H, W)``, preprocessed.
            size: ``(2,)`` float, height and width of the picture in ``image``; the rest is padding.
        """
        head = self.detector.bbox_head
        found = []
        for scores, deltas, anchors in _levels(head, head(self.detector.extract_feat(image))):
            scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
            place, labels = (scores > self.cfg.get('score_thr', 0)).nonzero().unbind(1)
            scores, order = scores[place, labels].sort(descending=True)
            order = order[: self.cfg.nms_pre]
            place, labels, scores = place[order], labels[order], scores[: self.cfg.nms_pre]
            found.append((anchors[place], deltas[place], scores, labels))
        anchors, deltas, scores, labels = [torch.cat(parts) for parts in zip(*found)]
        boxes = decode(head.bbox_coder, anchors, deltas, size)
        keep = keep_large(boxes, self.cfg)
        return suppress(boxes[keep], scores[keep], labels[keep], self.cfg.nms, self.cfg.max_per_img)


class TwoStage(nn.Module):
    """Faster, Mask or Cascade (Mask) R-CNN.

    Args:
        detector: The detector in eval mode.

    Raises:
        RunError: If its heads or its test settings are of another kind.
    """

    def __init__(self, detector: TwoStageDetector):
        super().__init__()
        rpn, roi = detector.rpn_head, detector.roi_head
        self.cascade = isinstance(roi, CascadeRoIHead)
        if not isinstance(rpn, RPNHead) or type(roi) not in (StandardRoIHead, CascadeRoIHead):
            raise RunError(
                f'a whole detector with {type(rpn).__name__} and {type(roi).__name__} cannot be exported: only '
                f'RPNHead with StandardRoIHead or CascadeRoIHead can'
            )
        self.detector = detector
        self.box_stages = self._stages(roi.bbox_roi_extractor, roi.bbox_head)
        self.mask_stages = self._stages(roi.mask_roi_extractor, roi.mask_head) if roi.with_mask else []
        for extractor, _ in [*self.box_stages, *self.mask_stages]:
            if type(extractor) is not SingleRoIExtractor:
                raise RunError(f'{type(extractor).__name__} cannot be exported: only SingleRoIExtractor can')
        for _, head in self.mask_stages:
            if not isinstance(head, FCNMaskHead):
                raise RunError(f'{type(head).__name__} cannot be exported: only FCNMaskHead can')
        check_nms(rpn.test_cfg.nms)
        check_nms(roi.test_cfg.nms)

    def _stages(self, extractors: Any, heads: Any) -> list[tuple[nn.Module, nn.Module]]:
        return list(zip(extractors, heads)) if self.cascade else [(extractors, heads)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return ('boxes', 'scores', 'labels', 'masks') if self.mask_stages else ('boxes', 'scores', 'labels')

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect; see :meth:`OneStage.forward`.

        Masks are ``(N, h, w)``, probabilities over the area of each box, as the mask head gives them.
        """
        maps = self.detector.extract_feat(image)
        cfg = self.detector.roi_head.test_cfg
        rois = self.proposals(maps, size)
        logits = []
        for extractor, head in self.box_stages:
            scores, deltas = head(pool(extractor, maps, rois))
            logits.append(scores)
            if head is not self.box_stages[-1][1]:  # the next stage of a cascade starts from the likeliest class's box
                if not head.reg_class_agnostic:
                    likeliest = scores[:, :-1].argmax(1)
                    deltas = deltas.unflatten(1, (-1, 4))[torch.arange(rois.shape[0], device=rois.device), likeliest]
                rois = decode(head.bbox_coder, rois, deltas, size)
        classes = head.num_classes
        scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1]
        repeat = 1 if head.reg_class_agnostic else classes
        boxes = decode(head.bbox_coder, rois.repeat_interleave(repeat, 0), deltas.reshape(-1, 4), size)
        boxes = boxes.reshape(-1, repeat, 4).expand(-1, classes, 4)
        place, labels = (scores > cfg.score_thr).nonzero().unbind(1)
        found = suppress(boxes[place, labels], scores[place, labels], labels, cfg.nms, cfg.max_per_img)
        return (*found, self.masks(maps, found[0], found[2])) if self.mask_stages else found

    def proposals(self, maps: Sequence[Tensor], size: Tensor) -> Tensor:
        """What the RPN proposes, ``(N, 4)``."""
        head, cfg = self.detector.rpn_head, self.detector.rpn_head.test_cfg
        found = []
        for level, (scores, deltas, anchors) in enumerate(_levels(head, head(maps))):
            scores = scores.sigmoid()[:, 0] if head.use_sigmoid_cls else scores.softmax(-1)[:, 0]
            scores, order = scores.sort(descending=True)
            scores, order = scores[: cfg.nms_pre], order[: cfg.nms_pre]
            found.append((anchors[order], deltas[order], scores, torch.full_like(order, level)))
        anchors, deltas, scores, levels = [torch.cat(parts) for parts in zip(*found)]
        boxes = decode(head.bbox_coder, anchors, deltas, size)
        keep = keep_large(boxes, cfg)
        return suppress(boxes[keep], scores[keep], levels[keep], cfg.nms, cfg.max_per_img)[0]

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Probabilities over the area of each box, ``(N, h, w)``, the mean of the stages of a cascade."""
        probabilities = []
        one_more = F.pad(boxes, (0, 0, 0, 1))  # taken off again: onnxruntime refuses group norm of no objects at all
        for extractor, head in self.mask_stages:
            logits = head(pool(extractor, maps, one_more))[:-1]
            place = torch.arange(boxes.shape[0], device=boxes.device)  # len() would be kept from the example
            probabilities.append((logits[:, 0] if head.class_agnostic else logits[place, labels]).sigmoid())
        return sum(probabilities) / len(probabilities)


def _levels(head: nn.Module, outputs: tuple[list[Tensor], list[Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores ``(N, classes)``, box deltas ``(N, 4)`` and anchors ``(N, 4)`` of each level of a pyramid."""
    scores, deltas = outputs
    anchors = head.prior_generator.grid_priors([level.shape[2:] for level in scores], device=scores[0].device)
    return [
        (score[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels), delta[0].permute(1, 2, 0).reshape(-1, 4), anchor)
        for score, delta, anchor in zip(scores, deltas, anchors)
    ]


def decode(coder: Any, boxes: Tensor, deltas: Tensor, size: Tensor) -> Tensor:
    """Move boxes ``(N, 4)`` by deltas ``(N, 4)`` and clip them to the picture, whose ``size`` is a tensor here."""
    moved = coder.decode(boxes, deltas)
    if not getattr(coder, 'clip_border', True):
        return moved
    return torch.minimum(moved.clamp(min=0), size[[1, 0, 1, 0]])


def keep_large(boxes: Tensor, cfg: Any) -> Tensor:
    """Which boxes are larger than ``min_bbox_size``, ``(N,)`` bool."""
    least = cfg.get('min_bbox_size', -1)
    sides = boxes[:, 2:] - boxes[:, :2]
    return (sides > least).all(1) if least >= 0 else torch.ones_like(sides[:, 0], dtype=torch.bool)


def check_nms(cfg: Any) -> None:
    """Raises RunError if the settings ask for more than plain non-maximum suppression."""
    if cfg.get('type', 'nms') != 'nms' or cfg.get('class_agnostic', False):
        raise RunError(f'non-maximum suppression of type {cfg.get("type")} cannot be exported: only nms can')


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, cfg: Any, count: int) -> Found:
    """Non-maximum suppression within each label; the ``count`` best."""
    # As mmcv's batched_nms: boxes of different labels are moved so far apart that they cannot overlap. The zero is for
    # an image without any box, of which there is no largest coordinate.
    farthest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    moved = boxes + (labels.to(boxes.dtype) * (farthest + 1))[:, None]
    keep = nms(moved, scores, cfg.iou_threshold)[:count]
    return boxes[keep], scores[keep], labels[keep]


def pool(extractor: SingleRoIExtractor, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box ``(N, 4)`` on the level of the pyramid that its size asks for, ``(N, C, h, w)``."""
    rois = F.pad(boxes, (1, 0))  # in front the number of the image, which is the first
    maps = maps[: len(extractor.roi_layers)]
    levels = extractor.map_roi_levels(rois, len(maps))
    places, pooled = [], []
    for level, (layer, x) in enumerate(zip(extractor.roi_layers, maps)):
        place = (levels == level).nonzero()[:, 0]
        places.append(place)
        pooled.append(
            roi_align(x, rois[place], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        )
    return torch.cat(pooled)[torch.cat(places).argsort()]


def detector(model: nn.Module) -> nn.Module:
    """An mmdet detector in its exportable form.

    Raises:
        RunError: If there is none for this kind.
    """
    if isinstance(model, TwoStageDetector):
        return TwoStage(model)
    if isinstance(model, SingleStageDetector) and isinstance(getattr(model, 'bbox_head', None), AnchorHead):
        return OneStage(model)
    raise RunError(
        f'a whole {type(model).__name__} cannot be exported: RetinaNet, Faster, Mask and Cascade R-CNN can, of the '
        f'others the backbone, without --whole'
    )
