"""Sampling points end up at the right pixels."""
import pytest
import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor

from mmdat import DAT, record_sampling
from mmdat.visualization import draw_sampling_points, position_to_pixel
from mmdat.visualization.sampling_points import denormalise

SIZE = 96, 70


def pixel_coordinates(height, width):
    """``(1, 2, H, W)``: each pixel holds its own (y, x)."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij'))[None].float()


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_dat_cells_are_patches(stride):
    centres = F.avg_pool2d(pixel_coordinates(*SIZE), stride)[0].permute(1, 2, 0)
    assert torch.allclose(position_to_pixel(grid(*centres.shape[:2]), SIZE, stride, 'dat'), centres, atol=1e-3)


@pytest.mark.parametrize('stride', [4, 8, 16])
def test_datpp_cells_are_centres_of_strided_convolutions(stride):
    centres = pixel_coordinates(*SIZE)
    for _ in range({4: 2, 8: 3, 16: 4}[stride]):
        kernel = torch.zeros(2, 1, 3, 3)
        kernel[:, :, 1, 1] = 1
        centres = F.conv2d(centres, kernel, stride=2, padding=1, groups=2)
    centres = centres[0].permute(1, 2, 0)
    assert torch.allclose(position_to_pixel(grid(*centres.shape[:2]), SIZE, stride, 'dat++'), centres, atol=1e-3)


def grid(height, width):
    """The normalised positions of all cells of a map."""
    axes = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)


@pytest.mark.parametrize('generation', ['dat', 'dat++'])
def test_the_map_that_is_sampled_has_the_size_the_mapping_assumes(generation, nano):
    """At sizes that are no multiples of the stride, DAT cuts the map and DAT++ rounds up."""
    if nano['generation'] != generation:
        pytest.skip('the other generation')
    maps = DAT(nano, img_size=64)(torch.randn(1, 3, *SIZE))
    for stride, feature in zip((4, 8, 16, 32), maps):
        last = torch.tensor(feature.shape[2:]) - 1
        corner = position_to_pixel(torch.ones(2), SIZE, stride, generation)
        assert torch.equal(corner, last * stride + ((stride - 1) / 2 if generation == 'dat' else 0))


def test_a_sheet_is_drawn_for_any_number_of_layers_groups_and_images(nano, tmp_path):
    model = DAT(nano, img_size=64).eval()
    with record_sampling(model) as records, torch.no_grad():
        model(torch.randn(2, 3, *SIZE))
    image = torch.randint(0, 255, (*SIZE, 3), dtype=torch.uint8).numpy()
    layers = [points[0] for name, points in records.items() if name.startswith('stages.2.')]
    for index in (0, 1):
        out = tmp_path / 'new' / f'{index}.png'
        draw_sampling_points(image, layers, 16, nano['generation'], out, 'stage 3', index, max_points=4)
        assert out.stat().st_size > 1000
    # The two images of the batch have points of their own.
    assert (tmp_path / 'new/0.png').read_bytes() != (tmp_path / 'new/1.png').read_bytes()


@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_the_picture_shows_the_image_in_its_colours(bgr_to_rgb):
    bgr = torch.randint(0, 255, (3, 40, 64), dtype=torch.uint8)
    preprocessor = DetDataPreprocessor(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=bgr_to_rgb)
    inputs = preprocessor(dict(inputs=[bgr], data_samples=None))['inputs'][0]
    assert (denormalise(inputs, preprocessor) == bgr.flip(0).permute(1, 2, 0).numpy()).all()
