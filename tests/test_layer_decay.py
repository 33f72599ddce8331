"""Layer-wise learning-rate decay: earlier blocks learn more slowly, in the order in which they run."""

import copy

import pytest
import torch
import torch.nn as nn
from mmengine.optim import build_optim_wrapper

from mmdat import DAT

RATE = 0.5


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.backbone = DAT(arch)
        self.head = nn.Linear(128, 4)


OPTIM_WRAPPER = dict(
    constructor='mmdat.LayerDecayOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=RATE, norm_decay_mult=0.0, custom_keys={'relative_position_bias_table': dict(decay_mult=0.0)}
    ),
)


@pytest.fixture
def model(nano):
    return Model(nano)


@pytest.fixture
def settings(model):
    optimizer = build_optim_wrapper(model, copy.deepcopy(OPTIM_WRAPPER)).optimizer
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group['params']}
    return {name: groups[id(parameter)] for name, parameter in model.named_parameters()}


def test_every_parameter_has_a_rate(model, settings):
    assert len(settings) == len(list(model.parameters()))
    assert settings['head.weight']['lr'] == 1
    assert settings['backbone.norm3.weight']['lr'] == 1


def test_depths_follow_the_forward_pass(model, settings):
    """The order in which modules run, as hooks see it, has rates that never fall."""
    order = []
    for name, module in model.backbone.named_modules(prefix='backbone'):
        if next(module.parameters(recurse=False), None) is not None and '.norm' not in name[len('backbone') :][:5]:
            module.register_forward_pre_hook(lambda module, inputs, name=name: order.append(name))
    model.backbone(torch.zeros(1, 3, 64, 64))
    rates = [settings[name + '.weight']['lr'] for name in order if name + '.weight' in settings]
    assert rates == sorted(rates)
    assert len(set(rates)) == sum(model.backbone.arch.depths) + 1  # the stem, and each block


def test_rates_fall_by_the_factor_per_block(model, settings):
    blocks = [(i, j) for i, depth in enumerate(model.backbone.arch.depths) for j in range(depth)]
    for distance, (i, j) in enumerate(reversed(blocks), 1):
        assert settings[f'backbone.stages.{i}.blocks.{j}.mlp.fc1.weight']['lr'] == pytest.approx(RATE**distance)
    assert settings['backbone.stem.0.weight']['lr'] == pytest.approx(RATE ** (len(blocks) + 1))


def test_norms_and_tables_stay_free_of_weight_decay(model, settings):
    """The rule of the configs spares what the backbone says."""
    free = {name for name, group in settings.items() if group['weight_decay'] == 0}
    assert free == {f'backbone.{name}' for name in model.backbone.no_weight_decay()}
    assert {settings[name]['weight_decay'] for name in set(settings) - free} == {0.05}
