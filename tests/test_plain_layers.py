"""Layers are what their class says: whatever wraps, replaces or watches modules by their type works."""

import copy
import warnings

import pytest
import torch
import torch.nn as nn

from mmdat import DAT, DeformableAttention, NeighborhoodAttention, WindowAttention
from mmdat.models.mixers import OffsetNetwork, SamplingPoints

pytestmark = pytest.mark.usefixtures('on_device')
WITH_TABLES = (DeformableAttention, NeighborhoodAttention, WindowAttention)


def linear_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


@pytest.fixture(params=['table', 'log'])
def model(nano, request):
    return DAT(dict(nano, position_bias=request.param), img_size=64).eval()


def test_parameters_are_those_of_pytorchs_own_layers_but_for_position_biases(model):
    for name, module in model.named_modules():
        parameters = dict(module.named_parameters(recurse=False))
        if isinstance(module, WITH_TABLES):
            assert set(parameters) <= {'relative_position_bias_table'}
        elif parameters and '.bias_mlp.' not in name:  # the network of log-spaced displacements
            assert type(module) in (nn.Linear, nn.LayerNorm, nn.Conv2d), name


def test_a_summary_by_hooks_sees_every_layer_with_its_channels(model):
    """As those that print input and output sizes do."""
    seen = set()

    def look(module, args, out):
        (x,) = args
        if isinstance(module, nn.Linear):
            assert x.shape[-1] == module.in_features and out.shape[-1] == module.out_features
        elif isinstance(module, nn.LayerNorm):
            assert x.shape[-1:] == module.normalized_shape and out.shape == x.shape
        elif isinstance(module, nn.Conv2d):
            assert x.shape[1] == module.in_channels and out.shape[1] == module.out_channels
        seen.add(module)

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.LayerNorm, nn.Conv2d, OffsetNetwork))]
    for module in layers:
        module.register_forward_hook(look)
    model(torch.randn(1, 3, 64, 96))
    assert seen == set(layers)


def test_the_offset_network_is_a_module_that_returns_the_sampling_points(nano):
    model = DAT(nano, img_size=64).eval()
    points = []
    model.stages[2].blocks[1].mixer.offset_net.register_forward_hook(lambda module, args, out: points.append(out))
    model(torch.randn(2, 3, 64, 96))
    assert isinstance(points[0], SamplingPoints) and points[0].position.shape[:2] == (2, 2)


class LowRank(nn.Module):
    """A linear layer with a low-rank update (LoRA), as adapters wrap it."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def test_every_linear_layer_can_be_wrapped(nano):
    model = DAT(nano, img_size=64)
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    names = linear_layers(model)
    assert any(name.endswith('offset_net.3') for name in names)
    for name, layer in names.items():
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, LowRank(layer))
    outs = model(x)
    for out, other in zip(outs, expected):  # the update is zero
        torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)
    sum(out.square().mean() for out in outs).backward()
    for name in names:
        assert model.get_submodule(name).up.weight.grad.any(), name


def test_lora_of_peft_wraps_every_linear_layer(nano):
    peft = pytest.importorskip('peft')
    model = DAT(nano, img_size=64)
    names = linear_layers(model)
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=list(names)))
    for out, other in zip(adapted(x), expected):
        torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)
    sum(out.square().mean() for out in adapted(x)).backward()
    updated = {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()}
    assert {f'base_model.model.{name}.lora_B.default.weight' for name in names} <= updated


@pytest.mark.skipif(not hasattr(torch.ao, 'quantization'), reason='PyTorch has handed quantisation on to torchao')
def test_dynamic_quantisation_finds_every_linear_layer(model, device):
    if device.type != 'cpu' or not set(torch.backends.quantized.supported_engines) - {'none'}:
        pytest.skip('dynamic quantisation runs on CPUs with a quantised engine')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    names = linear_layers(model)
    assert names and not linear_layers(quantised)
    for name in names:
        assert 'quantized' in type(quantised.get_submodule(name)).__module__
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for out, other in zip(quantised(x), model(x)):
            assert (out - other).abs().mean() < 0.2 * other.abs().mean()
