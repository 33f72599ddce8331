"""The examples of docs/other_projects.md, run as they stand there."""

import re
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import mmdet.utils
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import mmdat.configs.backbones
import mmdat.configs.optimizers
from mmdat import DAT, DeformableAttention

TEXT = (Path(__file__).parents[1] / 'docs/other_projects.md').read_text()
MMDET, PYTHON_STYLE, PLAIN, PLUGIN = re.findall(r'```python\n(.*?)```', TEXT, re.S)


@pytest.mark.parametrize('size', ['dat_t', 'dat_s', 'dat_b', 'datp_t', 'datpp_t', 'datpp_s', 'datpp_b'])
def test_importable_backbones_are_those_of_the_configs(size):
    options = dict(getattr(mmdat.configs.backbones, size))
    channels = getattr(mmdat.configs.backbones, f'{size}_channels')
    text_style = Config.fromfile(Path(__file__).parents[1] / f'configs/_base_/backbones/{size}.py')
    assert options == dict(type='mmdat.DAT', arch=text_style.arch)
    assert channels == text_style.channels
    with torch.device('meta'):
        assert list(DAT(options['arch']).out_channels) == channels


def test_importable_optimizer_is_that_of_the_coco_configs():
    text_style = Config.fromfile(Path(__file__).parents[1] / 'configs/maskrcnn_dat_t_1x_coco.py')
    assert dict(mmdat.configs.optimizers.adamw) == text_style.optim_wrapper.to_dict()


@pytest.mark.parametrize(
    'example, out_channels',
    [(MMDET, (64, 128, 256, 512)), (PYTHON_STYLE, (128, 256, 512))],
)
def test_config_of_another_project(example, out_channels, tmp_path):
    path = tmp_path / 'example.py'
    path.write_text(example)
    config = Config.fromfile(path)
    mmdet.utils.register_all_modules(init_default_scope=False)
    init_default_scope('mmdet')
    model = MODELS.build(config.model)
    assert isinstance(model.backbone, DAT) and model.backbone.out_channels == out_channels
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    spared = {id(p) for group in optimizer.param_groups if group['weight_decay'] == 0 for p in group['params']}
    named = {name for name, p in model.named_parameters() if id(p) in spared}
    assert named == {f'backbone.{name}' for name in model.backbone.no_weight_decay()}
    with torch.no_grad():
        assert len(model.extract_feat(torch.zeros(1, 3, 64, 64))) == 5


def test_plain_loop(capsys):
    namespace = {}
    exec(PLAIN, namespace)
    assert '(512,) (32,)' in capsys.readouterr().out
    assert torch.isfinite(namespace['loss'])


def test_deformable_attention_as_plugin(tmp_path):
    path = tmp_path / 'example.py'
    path.write_text(PLUGIN)
    config = Config.fromfile(path).model.backbone
    config.update(init_cfg=None, frozen_stages=-1)
    mmdet.utils.register_all_modules(init_default_scope=False)
    init_default_scope('mmdet')
    model = MODELS.build(config)
    layers = [m for m in model.modules() if isinstance(m, DeformableAttention)]
    assert len(layers) == 6 + 3
    model(torch.randn(1, 3, 64, 96))[-1].square().mean().backward()
    assert all(m.offset_net[-1].weight.grad.any() for m in layers)


MMSEG = 'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py'


@pytest.mark.skipif('mmsegmentation' in {d.metadata['Name'] for d in distributions()}, reason='not the fork')
def test_bases_of_the_fork_of_mmseg_are_named_by_their_path(tmp_path):
    """What docs/faq.md says. If the first half fails, the fork was mended, and the page can go."""
    file = tmp_path / 'own.py'
    file.write_text(f"_base_ = 'mmseg::{MMSEG}'")
    with pytest.raises(Exception, match='mmsegmentation is not installed'):
        Config.fromfile(file)
    file.write_text(f"_base_ = '{Path(find_spec('mmseg').origin).parent}/.mim/configs/{MMSEG}'")
    assert Config.fromfile(file).model.decode_head.type == 'UPerHead'
