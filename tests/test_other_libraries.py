"""Other libraries on the backbone and on whole models: adapters, quantisation, averages of weights, summaries, maps.

The toolboxes' own counters of multiply-adds, which trace a model, see all that it computes.
"""

import copy
import re
import subprocess
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from mmengine.model import ExponentialMovingAverage
from paths import DEMO
from small_runs import recorded, small_config
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode

from mmdat import DAT, analysis
from mmdat.apis import build_model, load_backbone, train
from mmdat.config.load import load_config

DEMO_DATA = dict(num_train=2, num_val=1, size=64)
UNITS = dict(K=1e3, M=1e6, G=1e9)


@pytest.fixture
def model(nano):
    return DAT(nano, img_size=64).eval()


@pytest.fixture
def image():
    return torch.randn(1, 3, 64, 64)


def relative_difference(outs, expected):
    return max(float((out - right).abs().max() / right.abs().max()) for out, right in zip(outs, expected))


def mmengine_average(model):
    average = ExponentialMovingAverage(model, momentum=0.25)
    return average, average.update_parameters


def torch_average(model):
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.75))
    return average, average.update_parameters


def timm_average(model):
    average = pytest.importorskip('timm.utils').ModelEmaV3(model, decay=0.75)
    return average, average.update


@pytest.mark.parametrize('make', [mmengine_average, torch_average, timm_average])
def test_exponential_moving_averages(make, model, image):
    """Every weight moves a quarter of the way to the new model's, and the average runs."""
    old = copy.deepcopy(model.state_dict())
    average, update = make(model)
    update(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    update(model)
    averaged = dict(average.module.named_parameters())
    assert averaged
    for name, parameter in averaged.items():
        torch.testing.assert_close(parameter, old[name] + 0.25)
    with torch.no_grad():
        assert all(out.isfinite().all() for out in average(image))


@pytest.mark.slow
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_ema_hook_of_mmengine(generation, workplace):
    """The checkpoint holds the average, from which the model is read as from any other."""
    options = {'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.interval': 2}  # the first step is only copied
    cfg = small_config('classifier', generation, workplace / 'run', options)
    cfg.custom_hooks += [dict(type='EMAHook', momentum=0.25)]
    train(cfg)
    last = recorded(cfg.work_dir)['weights']
    saved = torch.load(workplace / 'run/epoch_2.pth', weights_only=False)
    averaged = load_backbone(cfg, str(workplace / 'run/epoch_2.pth'))[0].state_dict()
    for name, value in averaged.items():
        assert torch.equal(value, saved['state_dict'][f'backbone.{name}'])
        assert torch.equal(last[f'backbone.{name}'], saved['ema_state_dict'][f'module.backbone.{name}'])
    assert any((value != last[f'backbone.{name}']).any() for name, value in averaged.items())


def test_peft_adapters(model, image):
    """LoRA trains the adapters alone, and merges into a model of the same outputs and names."""
    peft = pytest.importorskip('peft')
    names = list(model.state_dict())
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=['qkv', 'proj_q', 'proj_k', 'proj_v', 'fc1'])
    adapted = peft.get_peft_model(model, config)
    outs = adapted(image)
    sum(out.square().mean() for out in outs).backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert trained and all('lora_' in name for name in trained)
    merged = adapted.merge_and_unload()
    assert list(merged.state_dict()) == names
    with torch.no_grad():
        torch.testing.assert_close(merged(image), outs, atol=1e-4, rtol=1e-4)


def test_dynamic_int8_of_pytorch(model, image):
    """Linear layers in int8; maps of an untrained model change by a few hundredths of their largest value."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torchao takes its place
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    assert type(quantized.stages[0].blocks[0].mlp.fc1) is not torch.nn.Linear
    with torch.no_grad():
        assert 0 < relative_difference(quantized(image), model(image)) < 0.05


def test_dynamic_int8_of_torchao(model, image):
    quantization = pytest.importorskip('torchao.quantization')
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, quantization.Int8DynamicActivationInt8WeightConfig())
    with torch.no_grad():
        assert 0 < relative_difference(quantized(image), model(image)) < 0.05


def test_torchinfo_counts_the_parameters(model):
    summary = pytest.importorskip('torchinfo').summary(model, (1, 3, 64, 64), verbose=0)
    assert summary.total_params == analysis.parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['datnano', 'datppnano'])
def test_class_activation_maps_of_mmpretrain(name, tmp_path):
    """Its vis_cam.py takes blocks as layers, whose outputs are maps."""
    pytest.importorskip('pytorch_grad_cam')
    config = DEMO / f'{name}_shapes.py'
    torch.save(dict(state_dict=build_model(load_config(str(config))).state_dict()), tmp_path / 'weights.pth')
    picture = np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'image.png'), picture)
    tool = Path(find_spec('mmpretrain').origin).parent / '.mim/tools/visualization/vis_cam.py'
    command = [sys.executable, str(tool), 'image.png', str(config), 'weights.pth', '--save-path', 'cam.png']
    command += ['--target-layers', 'backbone.stages.3.blocks.0']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    drawn = cv2.imread(str(tmp_path / 'cam.png'))
    assert drawn.shape == picture.shape and (drawn != picture).any()


@pytest.mark.slow
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize(
    'package, config, options',
    [
        ('mmpretrain', '{}nano_shapes', ['--shape', '64']),
        ('mmseg', 'upernet_{}nano_shapes', ['--shape', '64', '64']),
        ('mmdet', 'maskrcnn_{}nano_shapes', ['--num-images', '1']),
    ],
)
def test_get_flops_of_the_toolboxes(package, config, options, generation, workplace):
    """mmdet counts at the size of an image of the data, which the demo's pipeline makes 128 pixels large."""
    script = Path(find_spec(package).origin).parent / '.mim/tools/analysis_tools/get_flops.py'
    path = DEMO / f'{config.format(generation)}.py'
    done = subprocess.run([sys.executable, str(script), str(path), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        name: float(value) * UNITS[unit] for name, value, unit in re.findall(r'(\w+): ([\d.]+)([KMG])', done.stdout)
    }

    cfg = load_config(str(path))
    cfg.model.pop('auxiliary_head', None)  # as mmseg does
    model = build_model(cfg)
    assert found['Params'] == pytest.approx(analysis.parameters(model), rel=1e-3)
    if package != 'mmdet':  # whose heads count with the proposals of an image
        own = analysis.model_operations(model, cfg, (64, 64), backbone_only=package == 'mmpretrain')
        assert found['Flops'] == pytest.approx(sum(own.values()), rel=0.1)
    else:
        assert found['Flops'] > sum(analysis.model_operations(model, cfg, (64, 64), backbone_only=True).values())


@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_products_of_a_detector(generation, monkeypatch):
    """As mmdet's get_flops.py asks MMEngine: the convolutions and products that PyTorch counts in the plain form."""
    cfg = load_config(str(DEMO / f'maskrcnn_{generation}nano_shapes.py'))
    model = build_model(cfg).eval()
    cfg.model.backbone.attn_impl = 'naive'
    plain = build_model(cfg).eval()
    plain.load_state_dict(model.state_dict())
    image, size = torch.rand(1, 3, 96, 128), (96, 128)
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(image, [sample])
    counted = {str(name).split('.')[1]: count // 2 for name, count in counter.get_flop_counts()['Global'].items()}

    monkeypatch.setattr(model, 'forward', partial(model.forward, data_samples=[sample]))
    by_operator = FlopAnalyzer(model, (image,)).by_operator()
    assert by_operator['conv'] == counted['convolution']
    assert by_operator['linear'] == counted['addmm'] + counted['mm']
    assert by_operator['matmul'] == counted['bmm'] > 0
    total = get_model_complexity_info(model, None, inputs=image, show_table=False, show_arch=False)['flops']
    assert total == sum(by_operator.values()) < 1.02 * sum(counted.values())


def test_operations_of_a_backbone(nano):
    """It counts the layers, and of attention what it knows: as much as mmdat's own count, give or take a quarter."""
    model = DAT(nano, img_size=64).eval()
    found = get_model_complexity_info(model, (3, 64, 64), show_table=False, show_arch=False)
    assert found['params'] == analysis.parameters(model)
    ours = analysis.backbone_operations((64, 64), arch=nano)
    assert ours['layers'] < found['flops'] < 1.25 * sum(ours.values())
