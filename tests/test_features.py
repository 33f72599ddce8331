"""Features of images: prepared as the weights were tested, whatever kind of image it is."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

import mmdat
from mmdat import DAT
from mmdat.errors import RunError

MEAN, STD = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


@pytest.fixture
def picture(tmp_path):
    """The path of an image with a soft pattern, 300 x 260."""
    pixels = torch.rand(1, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    pixels = (interpolate(pixels, (260, 300), mode='bicubic').clamp(0, 1) * 255).byte()[0].permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    return tmp_path / 'a.png'


@pytest.fixture
def model(nano):
    return DAT(nano, img_size=64, out_indices=(3,)).train()


def test_maps_and_vector_are_those_of_the_model(model, picture):
    maps, pooled = mmdat.features(model, picture)
    image = Image.open(picture).resize((256, 256), Image.BICUBIC).crop((16, 16, 240, 240))
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - MEAN) / STD
    assert model.training, 'the mode of the model was changed'
    model.eval()
    with torch.no_grad():
        stages = model.stem(pixels[None])
        for i, stage in enumerate(model.stages):
            stages = stage(stages if i == 0 else model.downsamples[i - 1](stages))
            torch.testing.assert_close(maps[i], stages)
        torch.testing.assert_close(pooled, model(pixels[None])[0].mean((2, 3)))
    assert not pooled.requires_grad


def test_every_kind_of_image_gives_the_same(model, picture):
    opened = Image.open(picture)
    array = np.array(opened)
    together = mmdat.features(model, [picture, str(picture), opened, array], batch_size=3)
    alone = mmdat.features(model, array)
    assert together.pooled.shape == (4, 128) and alone.pooled.shape == (1, 128)
    for stage, expected in zip((*together.maps, together.pooled), (*alone.maps, alone.pooled)):
        torch.testing.assert_close(stage, expected.expand_as(stage))


def test_photographs_are_turned_upright(model, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    opened = Image.open(picture)
    opened.transpose(Image.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    torch.testing.assert_close(
        mmdat.features(model, tmp_path / 'turned.png').pooled, mmdat.features(model, picture).pooled
    )


@pytest.mark.parametrize('size, shape', [(96, (24, 24)), ((64, 128), (16, 32))])
def test_other_sizes(size, shape, model, picture):
    maps, _ = mmdat.features(model, picture, size=size)
    assert [tuple(stage.shape[2:]) for stage in maps] == [(shape[0] // 2**i, shape[1] // 2**i) for i in range(4)]


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1,)])
def test_whatever_stages_the_model_returns_all_maps_are_given(out_indices, nano, picture):
    model = DAT(nano, img_size=64, out_indices=out_indices).eval()
    maps, pooled = mmdat.features(model, picture, size=64)
    assert [stage.shape[1] for stage in maps] == [16, 32, 64, 128]
    if 3 not in out_indices:
        torch.testing.assert_close(pooled, maps[3].mean((2, 3)))


@pytest.mark.parametrize(
    'image, message',
    [
        ('/none.jpg', 'there is no image /none.jpg: correct the path'),
        (__file__, 'test_features.py is not a readable image'),
        (np.zeros((4, 4), np.uint8), r'an array must be an RGB image .* got \(4, 4\) of uint8'),
        (np.zeros((4, 4, 3)), 'of float64'),
        ([], 'there are no images'),
    ],
)
def test_what_is_no_image(image, message, model):
    with pytest.raises(RunError, match=message):
        mmdat.features(model, image)
