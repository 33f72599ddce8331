"""The toolboxes' own counters of multiply-adds, which trace a model, see all that it computes."""

import re
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from paths import DEMO
from torch.utils.flop_counter import FlopCounterMode

from mmdat import DAT, analysis
from mmdat.apis import build_model
from mmdat.config.load import load_config

DEMO_DATA = dict(num_train=2, num_val=1, size=64)
UNITS = dict(K=1e3, M=1e6, G=1e9)


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
