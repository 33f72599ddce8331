"""The toolboxes' own counters of multiply-adds, which trace a model, see all that it computes."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from paths import DEMO

from mmdat import analysis
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
