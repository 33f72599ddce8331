"""mmcv-ops-torchvision: the same answers as mmcv's compiled operators, and importable in their place."""

import importlib.util
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mmcv_ops_torchvision
import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmcv_op_cases import RECORDED, boxes, call, cases, rois
from mmengine.utils import digit_version
from torch.nn.functional import conv2d, cross_entropy
from uncompiled import paths_without_compiled_operators

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
COMPILED = importlib.util.find_spec('mmcv._ext') and Path(importlib.util.find_spec('mmcv._ext').origin).suffix != '.py'

recorded = torch.load(RECORDED, weights_only=True)


def assert_same(answer, expected):
    """Indices and lists exactly, values to 1e-5; on any device."""
    if isinstance(answer, torch.Tensor) and answer.is_floating_point():
        torch.testing.assert_close(answer.cpu(), expected, rtol=1e-5, atol=1e-5)
    elif isinstance(answer, torch.Tensor):
        assert answer.tolist() == expected.tolist()
    else:
        assert answer == expected


def assert_same_call(operator, tensors, numbers, expected, device='cpu'):
    moved = tuple(t.to(device) if torch.is_tensor(t) else t for t in tensors)
    returned, written = call(mmcv_ops_torchvision, operator, moved, numbers)
    assert_same(returned, expected[0])
    for position, values in expected[1].items():
        # Where nothing is to be written, the operator wrote nothing.
        assert_same(written.get(position, moved[position]), values)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', recorded)
def test_answers_are_those_recorded_from_compiled_mmcv(name, device):
    case, expected = recorded[name]
    assert_same_call(*case, expected, device)


@pytest.mark.skipif(not COMPILED, reason='mmcv is not compiled here')
@pytest.mark.parametrize('count', [3, 16, 200])
def test_answers_are_those_of_compiled_mmcv(count):
    """Fresh inputs, with 200 boxes also equal scores in the order of an unstable sort."""
    from mmcv import _ext

    for case in cases(seed=int(torch.seed() % 2**31), count=count).values():
        assert_same_call(*case, call(_ext, *case))


def test_what_is_recorded_is_what_the_cases_are_today():
    assert {name: (c[0], c[2]) for name, c in cases(0).items()} == {n: (c[0], c[2]) for n, (c, _) in recorded.items()}


# What mmcv has no operator for on the CPU.


def values_and_gradients(function, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output.detach(), torch.autograd.grad(output, inputs, weights), weights


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_attention_is_mmcvs_formula(device):
    shapes, heads, points = torch.tensor([[6, 4], [3, 2]]), 2, 3
    value, weights = torch.randn(2, 30, heads, 5), torch.rand(2, 7, heads, 2, points)
    locations = torch.rand(2, 7, heads, 2, points, 2) * 1.4 - 0.2
    inputs = value, locations, weights

    expected, gradients, grad = values_and_gradients(
        lambda v, x, w: multi_scale_deformable_attn_pytorch(v, shapes, x, w), *inputs
    )
    v, x, w, grad, shapes = (t.to(device) for t in (*inputs, grad, shapes))
    levels = torch.tensor([0, 24], device=device)
    assert_same(mmcv_ops_torchvision.ms_deform_attn_forward(v, shapes, levels, x, w, im2col_step=64), expected)
    results = [torch.zeros_like(t) for t in (v, x, w)]
    mmcv_ops_torchvision.ms_deform_attn_backward(v, shapes, levels, x, w, grad, *results, im2col_step=64)
    for result, gradient in zip(results, gradients):
        assert_same(result, gradient)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_is_that_of_the_paper(weighted, device):
    classes, alpha, gamma = 4, 0.3, 1.5
    logits, target = torch.randn(9, classes) * 3, torch.arange(9) % (classes + 1)  # the last one is the background
    weight = torch.rand(classes) if weighted else torch.zeros(0)

    def loss(x):
        truth = torch.eye(classes + 1)[target, :classes]
        p, q = x.sigmoid(), (-x).sigmoid()
        each = -truth * alpha * q**gamma * p.log() - (1 - truth) * (1 - alpha) * p**gamma * q.log()
        return each * (torch.cat([weight, torch.ones(1)])[target, None] if weighted else 1)

    expected, (gradient,), grad = values_and_gradients(loss, logits)
    x, target, weight, output = (t.to(device) for t in (logits, target, weight, torch.zeros_like(logits)))
    mmcv_ops_torchvision.sigmoid_focal_loss_forward(x, target, weight, output, gamma=gamma, alpha=alpha)
    assert_same(output, expected)
    mmcv_ops_torchvision.sigmoid_focal_loss_backward(x, target, weight, output, gamma=gamma, alpha=alpha)
    assert_same(output * grad.to(device), gradient)


@pytest.mark.parametrize('device', DEVICES)
def test_softmax_focal_loss_is_that_of_the_paper(device):
    classes, alpha, gamma = 4, 0.3, 1.5
    logits, target = torch.randn(8, classes), torch.tensor([0, 1, 2, 3, -1, 0, 1, -1])
    weight = torch.rand(classes)

    def loss(x):
        logs = -cross_entropy(x, target.clamp(min=0), reduction='none')
        return -alpha * (1 - logs.exp()) ** gamma * logs * weight[target.clamp(min=0)] * (target >= 0)

    expected, (gradient,), grad = values_and_gradients(loss, logits)
    x, target, weight, output, buff = (t.to(device) for t in (logits, target, weight, torch.ones(8), torch.ones(8)))
    arguments = x.softmax(1), target, weight
    mmcv_ops_torchvision.softmax_focal_loss_forward(*arguments, output, gamma=gamma, alpha=alpha)
    assert_same(output, expected)
    result = torch.ones_like(x)
    mmcv_ops_torchvision.softmax_focal_loss_backward(*arguments, buff, result, gamma=gamma, alpha=alpha)
    assert_same(result * grad[:, None].to(device), gradient)


@pytest.mark.parametrize('device', DEVICES)
def test_roi_pool_takes_the_maximum_of_each_bin(device):
    x, scale, (rows, columns) = torch.randn(2, 3, 9, 11), 0.5, (2, 3)
    outside = torch.tensor([[-9.0, -9, 4, 4], [10, 8, 90, 90], [50, 50, 60, 60], [9, 9, 2, 2]])
    regions = rois(torch.cat([boxes(5, 20), outside]), boxes(4, 20))

    def pool(features):
        output = torch.zeros(len(regions), 3, rows, columns)
        for n, (image, x1, y1, x2, y2) in enumerate(regions.tolist()):
            left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
            for row in range(rows):
                for column in range(columns):
                    height, width = (bottom - top) / rows, (right - left) / columns
                    y = max(0, math.floor(top + row * height)), max(0, math.ceil(top + (row + 1) * height))
                    z = max(0, math.floor(left + column * width)), max(0, math.ceil(left + (column + 1) * width))
                    part = features[int(image), :, y[0] : y[1], z[0] : z[1]]
                    if part.numel() and height > 0 and width > 0:
                        output[n, :, row, column] = part.amax((1, 2))
        return output

    expected, (gradient,), grad = values_and_gradients(pool, x)
    x, regions, grad = x.to(device), regions.to(device), grad.to(device)
    output, argmax = torch.ones(expected.shape, device=device), torch.zeros(expected.shape, dtype=int, device=device)
    options = dict(pooled_height=rows, pooled_width=columns, spatial_scale=scale)
    mmcv_ops_torchvision.roi_pool_forward(x, regions, output, argmax, **options)
    assert_same(output, expected)
    result = torch.ones_like(x)
    mmcv_ops_torchvision.roi_pool_backward(grad, regions, argmax, result, **options)
    assert_same(result, gradient)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_masked_convolution_is_the_convolution_at_its_places(dtype, device):
    x, weight, padding = torch.randn(1, 3, 6, 8, dtype=dtype), torch.randn(4, 3, 3, 5, dtype=dtype), (1, 2)
    rows, columns = torch.tensor([0, 2, 5, 5]), torch.tensor([0, 7, 3, 7])
    expected = torch.zeros(1, 4, 6, 8)
    expected[0][:, rows, columns] = conv2d(x.float(), weight.float(), padding=padding)[0][:, rows, columns]

    x, weight, rows, columns = (t.to(device) for t in (x, weight, rows, columns))
    covered, output = x.new_ones(45, 4), x.new_zeros(1, 4, 6, 8)
    mmcv_ops_torchvision.masked_im2col_forward(x, rows, columns, covered, kernel_h=3, kernel_w=5, pad_h=1, pad_w=2)
    values = weight.flatten(1).float() @ covered.float()
    mmcv_ops_torchvision.masked_col2im_forward(values, rows, columns, output, height=6, width=8, channels=4)
    assert_same(output, expected.to(dtype))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('psa_type', [0, 1])
def test_masks_of_point_wise_attention_are_laid_out_pixel_by_pixel(psa_type, device):
    (height, width), (rows, columns) = (3, 4), (3, 5)
    x = torch.randn(2, rows * columns, height, width)

    def lay_out(masks):
        pairs = torch.zeros(2, height, width, height, width)
        for y, z in itertools.product(range(height), range(width)):
            for row, column in itertools.product(range(rows), range(columns)):
                other = y + row - rows // 2, z + column - columns // 2
                if 0 <= other[0] < height and 0 <= other[1] < width:
                    place = (*other, y, z) if psa_type == 0 else (y, z, *other)
                    pairs[(slice(None), *place)] = masks[:, row * columns + column, y, z]
        return pairs.flatten(1, 2)

    expected, (gradient,), grad = values_and_gradients(lay_out, x)
    options = dict(psa_type=psa_type, num_=2, h_feature=height, w_feature=width, h_mask=rows, w_mask=columns)
    options.update(half_h_mask=rows // 2, half_w_mask=columns // 2)
    output, result = torch.ones(expected.shape, device=device), torch.ones(x.shape, device=device)
    mmcv_ops_torchvision.psamask_forward(x.to(device), output, **options)
    assert_same(output, expected)
    mmcv_ops_torchvision.psamask_backward(grad.to(device), result, **options)
    assert_same(result, gradient)


# Where compiled mmcv is not the measure.


@pytest.mark.parametrize('device', DEVICES)
def test_deformable_convolution_reads_the_front_of_larger_offsets(device):
    """As mmcv's loop over memory does, for mmdet's DyHead."""
    x, weight = torch.randn(2, 3, 4, 6, device=device), torch.randn(4, 3, 3, 3, device=device)
    large = torch.randn(2, 18, 8, 12, device=device), torch.rand(2, 9, 8, 12, device=device)
    small = [t.flatten(1)[:, : t[0].numel() // 4].reshape(2, -1, 4, 6) for t in large]
    ones = ('stride', 'pad', 'dilation')
    options = {f'{name}_{axis}': 1 for name in ones for axis in 'hw'}
    options.update(kernel_h=3, kernel_w=3, group=1, deformable_group=1, with_bias=False)
    outputs, found = [], []
    for offset, mask in (large, small):
        output = x.new_empty(2, 4, 4, 6)
        mmcv_ops_torchvision.modulated_deform_conv_forward(x, weight, None, None, offset, mask, output, None, **options)
        grads = [torch.ones_like(t) for t in (x, weight, offset, mask)]
        mmcv_ops_torchvision.modulated_deform_conv_backward(
            x, weight, None, None, offset, mask, None, *grads[:2], None, *grads[2:], output, **options
        )
        outputs.append(output)
        found.append(grads)
    torch.testing.assert_close(*outputs)
    for grad, expected in zip(*found):
        front = grad.flatten(1)[:, : expected[0].numel()]
        torch.testing.assert_close(front, expected.flatten(1))
        assert not grad.flatten(1)[:, expected[0].numel() :].any()


@pytest.mark.parametrize('device', DEVICES)
def test_roi_align_finds_nothing_where_borders_have_changed_places(device):
    """As mmcv's kernel for GPUs; its operator for CPUs refuses such boxes."""
    regions = torch.tensor([[0.0, 6, 1, 2, 5], [0, 1, 6, 5, 2], [0, 6, 6, 2, 2], [0, 1, 1, 5, 5]], device=device)
    written = torch.ones(4, 2, 3, 3, device=device), torch.ones(1, 2, 8, 8, device=device)
    output, gradient = written
    options = dict(spatial_scale=1.0, sampling_ratio=0, pool_mode=1, aligned=True, aligned_height=3, aligned_width=3)
    mmcv_ops_torchvision.roi_align_forward(torch.rand_like(gradient), regions, output, None, None, **options)
    assert not output[:3].any() and output[3].all()
    mmcv_ops_torchvision.roi_align_backward(torch.ones_like(output), regions, None, None, gradient, **options)
    torch.testing.assert_close(gradient.sum().item(), 18.0)  # of the last box alone


def test_rotated_boxes_with_common_borders():
    """mmcv's float32 gives 0.0968, 0 and 0.0864 for the first three: it loses corners that lie on borders."""
    quarter = math.pi / 2
    pairs = [
        ([15, 52, 3, 40, math.pi], [19, 62, 20, 11, 3 * quarter], 60 / 280),
        ([86, 89, 41, 2, math.pi], [81, 91, 6, 4, quarter], 8 / 98),
        ([33, 74, 22, 25, quarter], [33, 89, 22, 25, 3 * quarter], 175 / 925),
        ([0, 0, 4, 2, 0], [0, 0, 2, 4, quarter], 1),
        ([0, 0, 4, 4, 0], [4, 0, 4, 4, math.pi], 0),  # only a border in common
        ([0, 0, 8, 8, 0], [1, 1, 2, 2, quarter / 2], 4 / 64),
        ([0, 0, 0, 2, 0], [0, 0, 2, 2, 0], 0),  # no area
    ]
    one, other = torch.tensor([p[0] for p in pairs]).float(), torch.tensor([p[1] for p in pairs]).float()
    ious = torch.ones(len(pairs))
    mmcv_ops_torchvision.box_iou_rotated(one, other, ious, mode_flag=0, aligned=True)
    assert_same(ious, torch.tensor([p[2] for p in pairs]))


def test_rotated_nms_keeps_boxes_of_other_labels():
    one = torch.tensor([[5.0, 5, 4, 4, 0.3, label] for label in (0, 1, 0, 1)])
    scores, labels = torch.tensor([0.1, 0.9, 0.8, 0.2]), one[:, 5].int()
    kept = mmcv_ops_torchvision.nms_rotated(one, scores, None, None, labels, 0.5, True)
    assert kept.tolist() == [1, 2]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', [name for name in recorded if not name.startswith('rotated nms')])
def test_half_precision_is_computed_in_float32_and_rounded_once(name, dtype, device):
    if device == 'cpu' and dtype == torch.float16 and digit_version(torch.__version__) < digit_version('2.3'):
        pytest.skip('autocast on CPUs knows bfloat16 only')
    (operator, tensors, numbers), _ = recorded[name]
    half = tuple(t.to(dtype) if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors)
    full = tuple(t.float() if torch.is_tensor(t) and t.is_floating_point() else t for t in half)
    expected = call(mmcv_ops_torchvision, operator, full, numbers)
    expected = expected[0], {i: t.to(dtype) if t.is_floating_point() else t for i, t in expected[1].items()}
    with torch.autocast(device, dtype=dtype):
        assert_same_call(operator, half, numbers, expected, device)


@pytest.fixture(scope='module')
def uncompiled(tmp_path_factory):
    """A ``PYTHONPATH`` with mmcv as it is without compiled operators, and the stand-in in their place."""
    return paths_without_compiled_operators(tmp_path_factory.mktemp('uncompiled'))


def run(paths, code):
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env={**os.environ, 'PYTHONPATH': paths}, capture_output=True, text=True, check=True)


def test_a_detector_without_compiled_operators_mmdat_imported_last(uncompiled):
    done = run(
        uncompiled,
        """
import mmdet.models, mmcv.ops, mmcv._ext
from mmcv.utils import collect_env
assert mmcv._ext.__file__.endswith('_ext.py'), mmcv._ext
assert 'mmcv-ops-torchvision' in collect_env()['MMCV Compiler']
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
init_default_scope('mmdet')
print(MODELS.build(dict(type='mmdat.DAT', arch='tiny')).__class__.__module__)
extractor = MODELS.build(dict(
    type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=2), out_channels=3, featmap_strides=[4]))
print(extractor([torch.ones(1, 3, 8, 8)], torch.tensor([[0.0, 1, 2, 9, 9]])).mean().item())
try:
    mmcv.ops.CARAFE(3, 1, 2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 9, 8, 8))
except NotImplementedError as error:
    print(error)
""",
    )
    module, mean, sentence = done.stdout.splitlines()[-3:]
    assert (module, mean) == ('mmdat.models.dat', '1.0')
    assert "mmcv's operator carafe_forward" in sentence and 'tools/install.sh --compile-ops' in sentence


@pytest.mark.skipif(not COMPILED, reason='mmcv is not compiled here')
def test_compiled_operators_go_first(tmp_path):
    paths = paths_without_compiled_operators(tmp_path)
    shutil.copy(importlib.util.find_spec('mmcv._ext').origin, tmp_path / 'mmcv')
    assert run(paths, 'import mmcv._ext; print(mmcv._ext.__file__)').stdout.strip().endswith('.so')
