"""Calls of mmcv's compiled operators, as mmcv makes them.

Run with a compiled mmcv, this file records what the operators answer for ``tests/test_mmcv_ops.py``:

    python tests/mmcv_op_cases.py
"""

import copy
from pathlib import Path

import torch

RECORDED = Path(__file__).parent / 'data' / 'compiled_mmcv' / 'operators.pt'


def boxes(count: int, size: float = 30.0, whole: bool = False) -> torch.Tensor:
    corners = torch.rand(count, 2) * size
    result = torch.cat([corners, corners + torch.rand(count, 2) * size / 2], 1)
    return result.round() if whole else result


def rotated_boxes(count: int, size: float = 30.0) -> torch.Tensor:
    return torch.cat([torch.rand(count, 2) * size, torch.rand(count, 2) * size / 2 + 1, torch.randn(count, 1) * 3], 1)


def rois(*regions: torch.Tensor) -> torch.Tensor:
    """Regions of several images, with the index of their image in front."""
    return torch.cat([torch.cat([torch.full((len(r), 1), float(i)), r], 1) for i, r in enumerate(regions)])


def cases(seed: int, count: int = 12) -> dict:
    """Name -> operator, tensors by position, numbers by name. ``count`` boxes; equal scores are sorted alike to 16."""
    torch.manual_seed(seed)
    found = {}

    def add(case: str, operator: str, *tensors: torch.Tensor, **numbers: float) -> None:
        assert case not in found
        found[case] = operator, tensors, numbers

    scores, ties = torch.rand(count), torch.randint(3, (count,)) / 4
    empty = torch.zeros(0, 4), torch.zeros(0)
    for offset in (0, 1):
        for whole, name in ((False, 'any'), (True, 'whole')):  # many overlaps of whole pixels are exactly 0.5
            options = dict(iou_threshold=0.5, offset=offset)
            add(f'nms of {name} boxes, offset {offset}', 'nms', boxes(count, 10, whole), scores, **options)
            add(f'nms with ties, {name} boxes, offset {offset}', 'nms', boxes(count, 10, whole), ties, **options)
        equal = boxes(1).repeat(count, 1)
        add(f'nms of equal boxes, offset {offset}', 'nms', equal, torch.ones(count), iou_threshold=0.5, offset=offset)
        add(f'nms of nothing, offset {offset}', 'nms', *empty, iou_threshold=0.5, offset=offset)
        for method, name in enumerate(('naive', 'linear', 'gaussian')):
            options = dict(iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
            add(f'softnms {name}, offset {offset}', 'softnms', boxes(count), scores, torch.zeros(count, 5), **options)
            add(f'softnms {name} with ties, {offset}', 'softnms', boxes(count), ties, torch.zeros(count, 5), **options)
        add(f'softnms of nothing, {offset}', 'softnms', *empty, torch.zeros(0, 5), **options)
        for mode, name in enumerate(('iou', 'iof')):
            options = dict(mode=mode, offset=offset)
            one, other, same = boxes(count), boxes(5), boxes(count)
            add(
                f'{name}, offset {offset}', 'bbox_overlaps', one, other, torch.zeros(count, 5), aligned=False, **options
            )
            add(f'{name} aligned, {offset}', 'bbox_overlaps', one, same, torch.zeros(count), aligned=True, **options)
    for threshold in (0.6, 0.7):  # next to a float32; 3 of 5 and 7 of 10 pixels in common
        squares = torch.tensor([[0, 0, 10, 1], [0, 0, 7, 1], [0, 0, 6, 1], [0, 0, 10, 1]]).float()
        add(f'nms at {threshold}', 'nms', squares, torch.rand(4), iou_threshold=threshold, offset=0)
    add('nms of lines', 'nms', torch.tensor([[1.0, 1, 1, 5]] * 2), torch.rand(2), iou_threshold=0.5, offset=0)
    add('nms_match', 'nms_match', torch.cat([boxes(count), scores[:, None]], 1), iou_threshold=0.3)
    add('nms_match with ties', 'nms_match', torch.cat([boxes(count), ties[:, None]], 1), iou_threshold=0.3)

    one, other, same = rotated_boxes(count), rotated_boxes(7), rotated_boxes(count)
    other[0] = one[0]  # overlaps altogether
    for mode, name in enumerate(('iou', 'iof')):
        options = dict(mode_flag=mode)
        add(f'rotated {name}', 'box_iou_rotated', one, other, torch.zeros(count * 7), aligned=False, **options)
        add(f'rotated {name}, aligned', 'box_iou_rotated', one, same, torch.zeros(count), aligned=True, **options)
    add('rotated iou of nothing', 'box_iou_rotated', one[:0], other, torch.zeros(0), mode_flag=0, aligned=False)
    for values, name in ((scores, 'scores'), (ties, 'ties')):
        order, no_labels = values.sort(descending=True)[1], torch.zeros(0, dtype=torch.int)
        add(f'rotated nms, {name}', 'nms_rotated', one, values, order, one[order], no_labels, 0.2, False)
    add('rotated nms of nothing', 'nms_rotated', one[:0], *[scores[:0]] * 2, one[:0], no_labels, 0.2, False)

    features = torch.randn(2, 3, 9, 11)
    outside = torch.tensor([[-8.0, -5, 3, 4], [15, 12, 60, 50], [5, 5, 5, 5], [100, 100, 120, 130]])
    regions, turned = rois(torch.cat([boxes(4), outside]), boxes(3)), rois(rotated_boxes(5), rotated_boxes(4, 60))
    pooled = 2, 3
    for sampling_ratio in (0, 2):
        for aligned in (True, False):
            name = f'{sampling_ratio} samples, {"aligned" if aligned else "not aligned"}'
            options = dict(spatial_scale=0.5, sampling_ratio=sampling_ratio, aligned=aligned)
            size = dict(aligned_height=pooled[0], aligned_width=pooled[1], pool_mode=1)
            for some, kind in ((regions, ''), (regions[:0], ' of nothing')):
                output, unused = torch.zeros(len(some), 3, *pooled), torch.zeros(0)
                forward = features, some, output, unused, unused
                add(f'RoIAlign{kind}, {name}', 'roi_align_forward', *forward, **size, **options)
                backward = torch.randn_like(output), some, unused, unused, torch.zeros_like(features)
                add(f'RoIAlign{kind} backward, {name}', 'roi_align_backward', *backward, **size, **options)
            size, output = dict(pooled_height=pooled[0], pooled_width=pooled[1]), torch.zeros(len(turned), 3, *pooled)
            for clockwise in (True, False):
                options['clockwise'] = clockwise
                case, forward = f'{name}, clockwise {clockwise}', (features, turned, output)
                add(f'rotated RoIAlign, {case}', 'roi_align_rotated_forward', *forward, **size, **options)
                backward = torch.randn_like(output), turned, torch.zeros_like(features)
                add(f'rotated RoIAlign backward, {case}', 'roi_align_rotated_backward', *backward, **size, **options)

    for groups, deform_groups, stride, padding, dilation in ((1, 1, 1, 1, 1), (2, 4, 2, 2, 2)):
        x, weight, bias = torch.randn(2, 4, 8, 7), torch.randn(6, 4 // groups, 3, 2), torch.randn(6)
        height, width = (
            (8 + 2 * padding - 2 * dilation - 1) // stride + 1,
            (7 + 2 * padding - dilation - 1) // stride + 1,
        )
        offset = torch.randn(2, deform_groups * 2 * 6, height, width) * 2
        mask = torch.rand(2, deform_groups * 6, height, width)
        output, grad, none = torch.zeros(2, 6, height, width), torch.randn(2, 6, height, width), torch.zeros(0)
        layout = dict(kW=2, kH=3, dW=stride, dH=stride, padW=padding, padH=padding, dilationW=dilation)
        layout.update(dilationH=dilation, group=groups, deformable_group=deform_groups, im2col_step=2)
        case = f'{groups} groups, {deform_groups} of offsets'
        zeros = torch.zeros_like
        add(f'DCN, {case}', 'deform_conv_forward', x, weight, offset, output, none, none, **layout)
        backward = x, offset, grad, zeros(x), zeros(offset), weight, none
        add(f'DCN backward, input, {case}', 'deform_conv_backward_input', *backward, **layout)
        backward = x, offset, grad, zeros(weight), none, none
        add(f'DCN backward, weight, {case}', 'deform_conv_backward_parameters', *backward, scale=1, **layout)
        layout = dict(kernel_h=3, kernel_w=2, stride_h=stride, stride_w=stride, pad_h=padding, pad_w=padding)
        layout.update(dilation_h=dilation, dilation_w=dilation, group=groups, deformable_group=deform_groups)
        for with_bias in (True, False):
            b, options = bias if with_bias else none, dict(layout, with_bias=with_bias)
            case = f'{groups} groups, {deform_groups} of offsets, bias {with_bias}'
            forward = x, weight, b, none, offset, mask, output, none
            add(f'DCNv2, {case}', 'modulated_deform_conv_forward', *forward, **options)
            backward = x, weight, b, none, offset, mask, none
            gradients = zeros(x), zeros(weight), zeros(b), zeros(offset), zeros(mask), grad
            add(f'DCNv2 backward, {case}', 'modulated_deform_conv_backward', *backward, *gradients, **options)
    return found


def call(extension, operator: str, tensors: tuple, numbers: dict) -> tuple:
    """What ``extension``'s operator returns, and the tensors that it wrote into, by position."""
    given = copy.deepcopy(tensors)
    returned = getattr(extension, operator)(*given, **numbers)
    pairs = enumerate(zip(tensors, given))
    return returned, {
        i: after for i, (before, after) in pairs if torch.is_tensor(after) and not torch.equal(before, after)
    }


def main() -> None:
    from mmcv import _ext

    recorded = {name: (case, call(_ext, *case)) for name, case in cases(seed=0).items()}
    torch.save(recorded, RECORDED)
    print(f'{len(recorded)} calls of {_ext.__file__} in {RECORDED}')


if __name__ == '__main__':
    main()
