"""Images of other kinds than 8-bit colour: predicted, drawn and looked at as the config's pipeline loads them."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from in_process import run_tool
from mmengine.registry import MODELS, init_default_scope
from paths import DEMO

from mmdat.apis import evaluate
from mmdat.config.load import load_config

HEIGHT, WIDTH = 64, 96


def gradient(maximum, dtype, channels=1):
    """An image from 0 to ``maximum``, in another direction for each channel."""
    rows, cols = np.mgrid[:HEIGHT, :WIDTH] / (HEIGHT + WIDTH - 2)
    image = np.stack([(rows + cols), rows, cols, 1 - rows][:channels], axis=-1) * maximum
    return image.astype(dtype).squeeze()


#: What is in the files, their suffix, how the config loads them, and with how many channels.
KINDS = {
    'gray': (gradient(255, np.uint8), '.png', dict(color_type='grayscale'), 1),
    'gray as colour': (gradient(255, np.uint8), '.png', dict(), 3),
    '16 bits': (gradient(40000, np.uint16, 3), '.png', dict(color_type='unchanged', to_float32=True), 3),
    '16 bits, one channel': (gradient(40000, np.uint16), '.png', dict(color_type='unchanged', to_float32=True), 1),
    'floats': (gradient(1, np.float32, 3), '.tiff', dict(color_type='unchanged', imdecode_backend='tifffile'), 3),
    'colour and depth': (gradient(255, np.uint8, 4), '.png', dict(color_type='unchanged'), 4),
    'to_float32': (gradient(255, np.uint8, 3), '.jpg', dict(to_float32=True), 3),
    'Pillow': (gradient(255, np.uint8, 3), '.jpg', dict(imdecode_backend='pillow'), 3),
}


def write(path, image):
    if path.suffix == '.tiff':  # OpenCV compresses floats in a way that tifffile does not read
        pytest.importorskip('tifffile').imwrite(path, image)
    else:
        assert cv2.imwrite(str(path), image)


def config(image, suffix, loading, channels):
    """The demo's classifier for two classes of such images, with random weights; a file of each."""
    for name in ('circle', 'square'):
        path = Path(f'data/val/{name}/photo_{name}{suffix}')
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, image if name == 'circle' else np.ascontiguousarray(image[::-1]))
    spread = float(image.max()) or 1.0
    preprocessor = dict(num_classes=4, mean=[spread / 2] * channels, std=[spread / 4] * channels, to_rgb=channels == 3)
    pipeline = [dict(type='LoadImageFromFile', **loading), dict(type='PackInputs')]
    cfg = load_config(str(DEMO / 'datnano_shapes.py'), work_dir='work')
    cfg.merge_from_dict(
        {
            'model.backbone.in_channels': channels,
            'test_dataloader': dict(batch_size=1, num_workers=0, persistent_workers=False),
            'custom_hooks': [dict(type='mmdat.SamplingPointsHook')],
        }
    )
    cfg.data_preprocessor = preprocessor
    classes = tuple(cfg.test_dataloader.dataset.metainfo.classes)
    cfg.test_dataloader.dataset = dict(
        type='mmdat.ClassFolders',
        data_root='data',
        data_prefix='val',
        folders=classes,
        metainfo=dict(classes=classes),
        pipeline=pipeline,
    )
    init_default_scope(cfg.default_scope)
    model = MODELS.build(dict(cfg.model, data_preprocessor=preprocessor))
    for parameter in model.parameters():  # some are zero at first, and all predictions alike
        torch.nn.init.normal_(parameter, std=0.05)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), 'model.pth')
    Path('config.py').write_text(cfg.dump())
    return cfg


@pytest.mark.parametrize('kind', KINDS)
def test_images_are_read_as_in_testing(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, suffix, loading, channels = KINDS[kind]
    cfg = config(image, suffix, loading, channels)
    evaluate(cfg, 'model.pth', out='expected.pkl')  # the training data are not there, and not needed
    expected = [sample['pred_score'].numpy() for sample in pickle.loads(Path('expected.pkl').read_bytes())]
    sheets = [cv2.imread(f'work/sampling_points/stage{stage}.png') for stage in (3, 4)]

    files = [f'data/val/{name}/photo_{name}{suffix}' for name in ('circle', 'square')]
    assert run_tool(monkeypatch, 'infer', 'config.py', 'model.pth', *files, '--device', 'cpu', '--out-dir', 'out') == 0
    found = [one['scores'] for one in json.loads(Path('out/predictions.json').read_text())]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-5  # the images matter
    for file in files:
        drawn = cv2.imread(f'out/pictures/{Path(file).stem}.jpg')
        assert drawn.shape == (HEIGHT, WIDTH, 3) and np.ptp(drawn[HEIGHT // 2 :]) > 100  # not black

    command = ['visualize_deformation', files[0], '--config', 'config.py', '--checkpoint', 'model.pth']
    assert run_tool(monkeypatch, *command, '--out-dir', 'sheets') == 0
    for stage, of_hook in zip((3, 4), sheets):  # whose picture has the colours of what the backbone got
        sheet = cv2.imread(f'sheets/stage{stage}.png')
        assert sheet.shape == of_hook.shape and np.abs(sheet.astype(int) - of_hook).mean() < 20
