"""tools/visualize_deformation.py: any task, pixels of the original image, and faults told in one sentence."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from in_process import call_tool, run_tool
from mmengine.config import Config

from mmdat.apis import load_backbone, network_input
from mmdat.errors import CheckpointError, RunError

ROOT = Path(__file__).parents[1]
DEMO = ROOT / 'configs/demo'
TOOL = ROOT / 'tools/visualize_deformation.py'
SPOT = (90, 158)  # row and column of the bright spot's centre


@pytest.fixture
def image(tmp_path):
    """A black image, 210 wide and 140 high, with a soft bright spot."""
    rows, cols = np.mgrid[:140, :210]
    spot = 255 * np.exp(-((rows - SPOT[0]) ** 2 + (cols - SPOT[1]) ** 2) / 2 / 4**2)
    path = tmp_path / 'spot.png'
    cv2.imwrite(str(path), np.repeat(spot[..., None], 3, -1).round().astype(np.uint8))
    return path


def full_size(name):
    """A config whose test pipeline is that of a full-size one, its backbone small."""
    return Config.fromfile(ROOT / 'configs' / name).test_dataloader.dataset.pipeline


# A demo config, and the test pipeline (and data preprocessor) that it is given.
PREPARATIONS = {
    'resized up and padded': ('maskrcnn_{}_shapes', lambda: full_size('maskrcnn_dat_t_1x_coco.py'), {}),
    'resized down and padded': (
        'maskrcnn_{}_shapes',
        lambda: [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(150, 150), keep_ratio=True),
            dict(type='Pad', size=(190, 170)),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_shape')),
        ],
        {},
    ),
    'stretched': (
        'upernet_{}_shapes',
        lambda: [
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(256, 320), keep_ratio=False),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        {'model.data_preprocessor.test_cfg': dict(size_divisor=48)},
    ),
    'resized and cropped': ('{}_shapes', lambda: full_size('dat_t_300e_in1k.py'), {}),
    'resized and cropped to a part': (
        '{}_shapes',
        lambda: [
            dict(type='LoadImageFromFile'),
            dict(type='ResizeEdge', scale=100, edge='short'),
            dict(type='CenterCrop', crop_size=(101, 86)),
            dict(type='PackInputs'),
        ],
        {},
    ),
}


@pytest.mark.parametrize('generation', ['datnano', 'datppnano'])
@pytest.mark.parametrize('preparation', sorted(PREPARATIONS))
def test_a_known_point_is_found_again(preparation, generation, image):
    """The spot, found in what the backbone gets and in the cells of its maps, leads back to its pixel in the file."""
    name, pipeline, options = PREPARATIONS[preparation]
    cfg = Config.fromfile(DEMO / f'{name.format(generation)}.py')
    cfg.merge_from_dict(options)
    cfg.test_dataloader.dataset.pipeline = pipeline()
    backbone, _ = load_backbone(cfg)
    inputs, view = network_input(cfg, image, backbone.arch.conv_stem)
    assert view.picture.shape == (140, 210, 3)
    assert view.picture[SPOT].tolist() == [255] * 3

    light = inputs[0, 0] - inputs[0, 0].min()
    light[light < 0.6 * light.max()] = 0  # padding has the mean colour
    rows, cols = torch.meshgrid(*map(torch.arange, light.shape), indexing='ij')
    centre = torch.stack([(light * rows).sum(), (light * cols).sum()]) / light.sum()
    assert (view.to_picture(centre) - torch.tensor(SPOT)).abs().max() < 0.3
    assert (view.to_input(torch.tensor(SPOT).float()) - centre).abs().max() < 0.3 * max(view.scale)

    for stride in (8, 16):
        # In DAT cells are patches; in DAT++ they are centred on every stride-th pixel.
        padding = stride // 2 if backbone.arch.conv_stem else 0
        kernel = stride if padding == 0 else stride + 1
        cells = F.avg_pool2d(light[None], kernel, stride, padding)[0]
        row, col = divmod(int(cells.argmax()), cells.shape[1])
        assert view.cell(SPOT, stride) == (row, col)
        last = torch.tensor(cells.shape) - 1
        found = view.locate(torch.tensor([row, col]) / last * 2 - 1, stride)
        assert ((found - torch.tensor(SPOT)).abs() <= stride / 2 / torch.tensor(view.scale) + 0.5).all()


@pytest.mark.parametrize('generation', ['datnano', 'datppnano'])
@pytest.mark.parametrize('task', ['maskrcnn_{}', 'upernet_{}', '{}'])
def test_detector_segmentor_and_classifier(task, generation, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = task.format(generation) + '_shapes'
    call_tool(monkeypatch, 'visualize_deformation', image, '--config', DEMO / f'{name}.py')
    files = sorted((tmp_path / 'work_dirs' / name / 'deformation/spot').iterdir())
    stages = {'datnano': (3, 4), 'datppnano': (2, 3, 4)}[generation]
    assert [file.name for file in files] == [f'stage{stage}.png' for stage in stages]
    for file in files:
        assert cv2.imread(str(file)).std() > 10
    out = capsys.readouterr().out
    assert 'The weights are untrained' in out
    assert all(str(file.relative_to(tmp_path)) in out for file in files)


def test_weights_of_a_checkpoint_layers_and_queries(image, tmp_path, monkeypatch, capsys):
    config = DEMO / 'maskrcnn_datnano_shapes.py'
    backbone, trained = load_backbone(Config.fromfile(config))
    assert not trained
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in backbone.state_dict().items()}}, tmp_path / 'model.pth')
    loaded, trained = load_backbone(Config.fromfile(config), str(tmp_path / 'model.pth'))
    assert trained
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in backbone.state_dict().items())
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'model.pth'))
    assert load_backbone(cfg)[1]

    common = [image, '--config', config, '--checkpoint', tmp_path / 'model.pth', '--layer', 'stages.2.blocks.1.mixer']
    sheets = []
    for queries in (['158,90'], ['20,20'], ['20,20', '158,90']):
        call_tool(monkeypatch, 'visualize_deformation', *common, '--out-dir', tmp_path / 'out', '--query', *queries)
        assert [path.name for path in (tmp_path / 'out').iterdir()] == ['stage3.png']
        sheets.append((tmp_path / 'out/stage3.png').read_bytes())
    assert len(set(sheets)) == 3
    assert 'untrained' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['nope.png'], r'there is no image /.*/nope\.png'),
        (['broken.jpg'], r'broken\.jpg is not a readable image'),
        (
            ['spot.png', '--query', '210,20'],
            r'the query 210,20 is outside of the image, whose pixels are 0,0 to 209,139',
        ),
        (['spot.png', '--query', '20,-1'], r'the query 20,-1 is outside of the image'),
        (['spot.png', '--query', '7'], r'--query takes pixels as x,y such as 200,150, got 7'),
        (
            ['spot.png', '--layer', 'stages.2.blocks.0.mixer'],
            r'there is no deformable layer stages\.2\.blocks\.0\.mixer: the layers are '
            r'stages\.2\.blocks\.1\.mixer, stages\.3\.blocks\.0\.mixer$',
        ),
        (['spot.png', '--config', 'nope.py'], r'there is no config file /.*/nope\.py'),
        (['spot.png', '--config', 'resnet.py'], r'the config resnet\.py has no backbone of type mmdat\.DAT'),
        (['spot.png', '--config', 'windows.py'], r'the backbone has no deformable attention'),
        (
            ['spot.png', '--config', 'cropping.py', '--query', '0,70'],
            r'the query 0,70 is cut away by the test pipeline',
        ),
        (['spot.png', '--config', 'cropping_somewhere.py'], r'the test pipeline has RandomCrop, and where that moves'),
    ],
)
def test_faults_are_told_in_one_sentence(arguments, message, image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('broken.jpg').write_bytes(b'no image')
    demo = Config.fromfile(DEMO / 'datnano_shapes.py')
    for name, change in {
        'resnet': {'model.backbone': dict(_delete_=True, type='ResNet', depth=18)},
        'windows': {'model.backbone.arch': dict(depths=(1, 1, 1, 1), stage_spec=('L', 'S', 'L', 'S'))},
        'cropping': {'test_dataloader.dataset.pipeline': full_size('dat_t_300e_in1k.py')},
        'cropping_somewhere': {
            'test_dataloader.dataset.pipeline': [
                dict(type='LoadImageFromFile'),
                dict(type='RandomCrop', crop_size=64),
                dict(type='PackInputs'),
            ]
        },
    }.items():
        cfg = demo.copy()
        cfg.merge_from_dict(change)
        cfg.dump(f'{name}.py')
    if '--config' not in arguments:
        arguments = [*arguments, '--config', DEMO / 'datnano_shapes.py']
    with pytest.raises(RunError, match=message) as error:
        call_tool(monkeypatch, 'visualize_deformation', *arguments)
    assert '\n' not in str(error.value)


def test_a_picture_below_a_cell_of_the_map(tmp_path, monkeypatch, capsys):
    """A detector pads it, so the model takes it. (DAT++ has points on the border, which can be drawn.)"""
    path = tmp_path / 'thin.png'
    cv2.imwrite(str(path), np.zeros((1, 64, 3), np.uint8))
    config = DEMO / 'maskrcnn_datnano_shapes.py'
    command = [path, '--config', config, '--out-dir', tmp_path / 'out']
    assert run_tool(monkeypatch, 'visualize_deformation', *command) == 1
    assert 'the picture of 1x64 pixels is smaller than a cell of a map' in capsys.readouterr().err


def test_checkpoints_that_do_not_fit(image, tmp_path):
    cfg = Config.fromfile(DEMO / 'datnano_shapes.py')
    with pytest.raises(CheckpointError, match='there is no checkpoint .*nope.pth'):
        load_backbone(cfg, 'nope.pth')
    torch.save({'state_dict': {'backbone.conv1.weight': torch.zeros(1)}}, tmp_path / 'resnet.pth')
    with pytest.raises(CheckpointError, match='resnet.pth: these weights are not of a DAT'):
        load_backbone(cfg, str(tmp_path / 'resnet.pth'))


def test_on_the_command_line_a_fault_ends_with_one_line(tmp_path):
    command = [sys.executable, str(TOOL), 'nope.png', '--config', str(DEMO / 'datnano_shapes.py')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith('visualize_deformation.py: there is no image')
