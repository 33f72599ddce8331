"""Sampling points end up at the right pixels, attention weights are the layers' own, and sheets get logged."""

import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from paths import ROOT

from mmdat import DAT
from mmdat.apis import train
from mmdat.config.load import load_config
from mmdat.hooks import SamplingPointsHook, sampling_points
from mmdat.models.mixers import SamplingPoints
from mmdat.visualization import (
    LayerAttention,
    View,
    attention_sheets,
    layer_names,
    position_to_pixel,
    record_attention,
    save_sheets,
)
from mmdat.visualization.panels import draw_queries, draw_received, draw_sampling_points
from mmdat.visualization.view import denormalise

SIZE = 96, 70


def pixel_coordinates(height, width):
    """``(1, 2, H, W)``: each pixel holds its own (y, x)."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'))[None].float()


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_dat_cells_are_patches(stride):
    centres = F.avg_pool2d(pixel_coordinates(*SIZE), stride)[0].permute(1, 2, 0)
    assert torch.allclose(position_to_pixel(grid(*centres.shape[:2]), SIZE, stride, False), centres, atol=1e-3)


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_datpp_cells_are_centres_of_strided_convolutions(stride):
    centres = pixel_coordinates(*SIZE)
    for _ in range({4: 2, 8: 3, 16: 4}[stride]):
        kernel = torch.zeros(2, 1, 3, 3)
        kernel[:, :, 1, 1] = 1
        centres = F.conv2d(centres, kernel, stride=2, padding=1, groups=2)
    centres = centres[0].permute(1, 2, 0)
    assert torch.allclose(position_to_pixel(grid(*centres.shape[:2]), SIZE, stride, True), centres, atol=1e-3)


def grid(height, width):
    """The normalised positions of all cells of a map."""
    axes = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)


def test_the_map_that_is_sampled_has_the_size_the_mapping_assumes(nano):
    """At sizes that are no multiples of the stride, DAT cuts the map and DAT++ rounds up."""
    generation = nano['generation']
    maps = DAT(nano, img_size=64)(torch.randn(1, 3, *SIZE))
    for stride, feature in zip((4, 8, 16, 32), maps):
        last = torch.tensor(feature.shape[2:]) - 1
        corner = position_to_pixel(torch.ones(2), SIZE, stride, generation == 'dat++')
        assert torch.equal(corner, last * stride + ((stride - 1) / 2 if generation == 'dat' else 0))


@pytest.mark.parametrize('conv_stem', [False, True])
def test_every_cell_is_the_one_nearest_to_where_it_is_drawn(conv_stem):
    """The way from queries to cells is the inverse of the way from cells to the picture."""
    view = View(picture(140, 200), (112, 160), conv_stem, scale=(0.75, 0.8), shift=(-3.0, 5.0))
    for stride in (8, 16):
        height, width = 112 // stride, 160 // stride
        pixels = view.locate(grid(height, width), stride)
        for row in range(height):
            for col in range(width):
                assert view.cell(pixels[row, col].tolist(), stride) == (row, col)
    pixel = torch.tensor([17.0, 40.0])
    assert torch.allclose(view.to_picture(view.to_input(pixel)), pixel)


def picture(height, width):
    return torch.randint(0, 255, (height, width, 3), dtype=torch.uint8).numpy()


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_the_picture_shows_the_image_in_its_colours(bgr_to_rgb):
    bgr = torch.randint(0, 255, (3, 40, 64), dtype=torch.uint8)
    preprocessor = DetDataPreprocessor(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=bgr_to_rgb
    )
    inputs = preprocessor(dict(inputs=[bgr], data_samples=None))['inputs'][0]
    assert (denormalise(inputs, preprocessor) == bgr.flip(0).permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize('position_bias', ['table', 'log', 'fixed', 'dwconv', 'none', 'pooled'])
def test_the_weights_are_those_the_layer_computes_with(position_bias, nano):
    """Weights times values, through the output projection, are what the layer returned."""
    change = dict(use_offsets=False) if position_bias == 'pooled' else dict(position_bias=position_bias)
    model = DAT(dict(nano, **change), img_size=64).double().eval()
    for name, parameter in model.named_parameters():
        if 'relative_position_bias_table' in name:  # initialised so small that errors in it would hide
            torch.nn.init.normal_(parameter)
    values, outputs = {}, {}
    layers = {name: model.get_submodule(name) for name in layer_names(model)}
    for name, layer in layers.items():
        layer.proj_v.register_forward_hook(lambda m, args, out, name=name: values.__setitem__(name, out))
        layer.register_forward_hook(lambda m, args, out, name=name: outputs.__setitem__(name, out))
    with torch.no_grad(), record_attention(model) as records:
        model(torch.randn(2, 3, *SIZE, dtype=torch.float64))
        assert list(records) == list(layers) and len(layers) == {'dat': 2, 'dat++': 4}[nano['generation']]
        for name, layer in layers.items():
            (attention,) = records[name]
            weights = torch.cat([attention.weights(*rows) for rows in attention.chunks(chunk_bytes=4096)], 2)
            value = values[name].permute(0, 3, 1, 2).flatten(2).unflatten(1, (layer.num_heads, -1))
            out = (value @ weights.transpose(2, 3)).flatten(1, 2).unflatten(2, attention.query.shape[2:])
            if position_bias == 'dwconv':
                out = out + layer.bias_conv(attention.query)
            projected = layer.proj_out(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert torch.allclose(projected, outputs[name], rtol=1e-9, atol=1e-9)


def test_attention_received_and_of_single_queries(nano):
    model = DAT(nano, img_size=64).double().eval()
    with torch.no_grad(), record_attention(model) as records:
        model(torch.randn(2, 3, *SIZE, dtype=torch.float64))
    for (attention,) in records.values():
        height, width = attention.query.shape[2:]
        heads, groups = attention.num_heads, attention.points.position.shape[1]
        with torch.no_grad():
            weights = attention.weights(0, height)  # (B, heads, queries, keys)
            of_query = attention.of_query(1, 1)
            received = attention.received(chunk_bytes=1)  # row by row
        per_group = weights.unflatten(1, (groups, -1))
        assert torch.allclose(received.flatten(2), per_group.sum((2, 3)))
        assert torch.allclose(of_query.flatten(2), per_group[:, :, :, width + 1].sum(2) / heads)
        on_map, total = attention.received_map().sum((1, 2)), torch.full((2,), 1.0 * heads * height * width).double()
        assert torch.allclose(received.sum((1, 2, 3)), total)
        if nano['generation'] == 'dat++':  # its points stay on the map
            assert torch.allclose(on_map, total)
        assert (on_map <= total + 1e-6).all()


def one_key(position, heads=2, size=(6, 8)):
    """A layer all of whose queries attend to one key."""
    position = torch.tensor(position).reshape(1, 1, 1, 1, 2)
    points = SamplingPoints(torch.zeros_like(position), position[0, 0], position)
    return LayerAttention(
        torch.randn(1, 4, *size), torch.randn(1, 4, 1, 1), None, points, heads, key_stride=(1, 1), map_size=size
    )


def test_attention_is_received_where_the_key_was_sampled():
    cell = [2 / 5 * 2 - 1, 3 / 7 * 2 - 1]  # row 2 of 6, column 3 of 8
    expected = torch.zeros(1, 6, 8)
    expected[0, 2, 3] = 2 * 48
    assert torch.allclose(one_key(cell).received_map(), expected, atol=1e-3)
    between = one_key([cell[0], 3.5 / 7 * 2 - 1]).received_map()[0, 2]
    assert torch.allclose(between[3:5], torch.tensor([48.0, 48.0]), atol=1e-3)


@pytest.mark.parametrize(
    'conv_stem, pixel',
    [
        (False, [(39.5 + 0.5) / 0.5 - 0.5, (55.5 + 0.5) / 0.5 - 0.5]),
        (True, [(32 + 0.5) / 0.5 - 0.5, (48 + 0.5) / 0.5 - 0.5]),
    ],
)
def test_a_key_is_drawn_at_the_pixel_of_the_original_image(conv_stem, pixel):
    """The key in row 2, column 3 of a map of stride 16, whose image was made half as large and padded."""
    view = View(picture(180, 250), (96, 128), conv_stem, scale=(0.5, 0.5))
    attention = one_key([2 / 5 * 2 - 1, 3 / 7 * 2 - 1])
    points, queries, heat = Figure().subplots(1, 3)
    draw_sampling_points(points, view, 16, attention.points)
    draw_queries(queries, view, 16, attention, [(50.0, 60.0)])
    draw_received(heat, view, 16, attention)
    arrows, dots, crosses = [artist.get_offsets()[0].tolist() for artist in points.collections]
    circle, star = [artist.get_offsets()[0].tolist() for artist in queries.collections]
    for drawn in (arrows, dots, crosses, circle):
        assert drawn == pytest.approx(pixel[::-1], abs=1e-3)
    assert star == [60.0, 50.0]
    image = heat.images[1]
    left, right, bottom, top = image.get_extent()
    assert top + 2.5 / 6 * (bottom - top) == pytest.approx(pixel[0])
    assert left + 3.5 / 8 * (right - left) == pytest.approx(pixel[1])
    assert image.get_array().argmax() == 2 * 8 + 3


def test_sheets_of_all_stages(nano, tmp_path):
    model = DAT(nano, img_size=64).train()
    inputs, view = torch.randn(1, 3, *SIZE), View(picture(*SIZE), SIZE, nano['generation'] == 'dat++')
    sheets = attention_sheets(model, inputs, view)
    assert set(sheets) == ({3, 4} if nano['generation'] == 'dat' else {1, 2, 3, 4})
    assert model.training and model.stages[2].training
    one = attention_sheets(model, inputs, view, queries=[(3, 4)], layers=['stages.2.blocks.1.mixer'])
    assert set(one) == {3} and (one[3] != sheets[3]).any()
    (file,) = save_sheets(one, tmp_path / 'new')
    assert file == tmp_path / 'new/stage3.png'
    assert (cv2.imread(str(file))[..., ::-1] == one[3]).all()


def test_layers_that_pool_are_drawn_with_the_centres_of_their_cells(nano):
    model = DAT(dict(nano, use_offsets=False, key_strides=(4, 3, 2, 1)), img_size=64).eval()
    inputs, view = torch.randn(1, 3, *SIZE), View(picture(*SIZE), SIZE, nano['generation'] == 'dat++')
    with torch.no_grad(), record_attention(model) as records:
        model(inputs)
    assert len(records) == {'dat': 2, 'dat++': 4}[nano['generation']]
    for (attention,) in records.values():
        size = attention.query.shape[2:]
        centres = F.avg_pool2d(pixel_coordinates(*size), attention.key_stride)[0].permute(1, 2, 0)
        points = attention.points
        assert points.position.shape == (1, 1, *centres.shape) and not points.offset.any()
        assert torch.equal(points.position[0, 0], points.reference)
        assert torch.allclose((points.reference + 1) / 2 * (torch.tensor(size) - 1), centres, atol=1e-4)
    assert set(attention_sheets(model, inputs, view, layers=list(records)[-1:])) == {4}


def test_nothing_stays_behind_in_the_model(nano):
    model = DAT(nano, img_size=64)
    with record_attention(model) as records:
        pass
    model(torch.randn(1, 3, *SIZE))
    assert records and not any(records.values())


def run_training(work_dir, data, name, *hooks):
    """Two epochs of two iterations of the demo's classifier; returns the final weights."""
    cfg = load_config(
        str(ROOT / f'configs/demo/{name}_shapes.py'),
        work_dir=str(work_dir),
        options={
            'train_dataloader': dict(batch_size=2, num_workers=0, persistent_workers=False),
            'val_dataloader': dict(num_workers=0, persistent_workers=False),
            'train_dataloader.dataset.data_root': str(data / 'classification'),
            'val_dataloader.dataset.data_root': str(data / 'classification'),
            'train_cfg.max_epochs': 2,
            'train_cfg.val_interval': 2,
            'default_hooks.checkpoint.interval': 2,
            'model.backbone.drop_path_rate': 0.3,
            'custom_hooks': [dict(type='mmdat.SamplingPointsHook', **hook) for hook in hooks],
        },
    )
    train(cfg)
    return torch.load(work_dir / 'epoch_2.pth', map_location='cpu', weights_only=False)['state_dict']


@pytest.mark.parametrize('name, stages', [('datnano', (3, 4)), ('datppnano', (2, 3, 4))])
def test_sheets_are_logged_during_training_without_changing_it(name, stages, data, tmp_path):
    plain = run_training(tmp_path / 'plain', data, name)
    watched = run_training(
        tmp_path / 'watched', data, name, dict(interval=3, by_epoch=False), dict(interval=2)
    )  # step 3; epoch 2, step 4
    for run, steps in (('plain', []), ('watched', [3, 4])):
        logged = {path.name for path in (tmp_path / run).glob('*/vis_data/vis_image/*')}
        assert logged == {f'deformation_stage{stage}_{step}.png' for stage in stages for step in steps}
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_sheets_of_the_hook_leave_padding_out(nano, tmp_path, monkeypatch):
    """The image of 40x56 pixels is padded to 64x64 for the backbone; the picture is the image alone."""
    model = torch.nn.Module()
    model.data_preprocessor = DetDataPreprocessor(mean=[0.0] * 3, std=[1.0] * 3, pad_size_divisor=64)
    model.backbone = DAT(nano, img_size=64)
    views = []
    monkeypatch.setattr(sampling_points, 'attention_sheets', lambda *args, **kwargs: views.append(args[2]) or {})
    runner = SimpleNamespace(model=model, work_dir=str(tmp_path), logger=logging.getLogger())
    image = torch.randint(256, (3, 40, 56), dtype=torch.uint8)
    hook = SamplingPointsHook()
    hook.before_test_iter(runner, 0)
    sample = DetDataSample(metainfo=dict(img_shape=(40, 56)))
    model.backbone(model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))['inputs'])
    hook.after_test_iter(runner, 0)
    (view,) = views
    assert view.input_size == (64, 64)
    np.testing.assert_array_equal(view.picture, image.permute(1, 2, 0).numpy()[..., ::-1])
    assert not view.inside((4, 4), 16)[-1].any() and view.inside((4, 4), 16)[0].any()


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match='interval must be 0 .* or positive, got -1'):
        SamplingPointsHook(interval=-1)
