"""The numbers of the official models: tests/data holds their weights, inputs, outputs and gradients."""

import pytest
import torch
from paths import DATA

from mmdat import DAT
from mmdat.models.checkpoint import convert_official

CASES = sorted(DATA.glob('*.pt'))


def build(facts: dict) -> DAT:
    arch = {name: facts[name] for name in ('generation', 'dims', 'depths', 'heads', 'groups', 'stage_spec')}
    return DAT(arch, img_size=facts.get('img_size', 224), out_indices=facts.get('out_indices', (3,)))


@pytest.mark.parametrize('path', CASES, ids=lambda path: path.stem)
@pytest.mark.parametrize('sampler, impl', [('torch', 'fast'), ('torch', 'tiled'), ('mmcv', 'naive')])
def test_outputs_and_gradients_are_the_official_ones(path, sampler, impl, device):
    if sampler == 'mmcv':
        pytest.importorskip('mmcv.ops')
    case = torch.load(path, weights_only=True, map_location=device)
    state_dict = {key: value.double() for key, value in case['state_dict'].items()}
    model = build(case['arch']).to(device).double().eval()
    model.load_state_dict(state_dict)  # strict: nothing missing, nothing unexpected
    for module in model.modules():
        if hasattr(module, 'impl'):
            module.impl = impl
        if hasattr(module, 'sampler'):
            module.sampler = sampler

    outputs = model(case['input'].double() / 64)
    expected = case['outputs']
    if 'num_classes' in case['arch']:
        pooled = outputs[0].mean((2, 3))
        outputs = [pooled @ state_dict['cls_head.weight'].t() + state_dict['cls_head.bias']]
        expected = [expected] if torch.is_tensor(expected) else expected
    for output, target in zip(outputs, expected):
        assert (output - target).abs().max() <= 1e-6 * target.abs().max()

    generator = torch.Generator().manual_seed(case['grad_seed'])
    loss = sum(
        (output * torch.randn(output.shape, generator=generator).to(device)).sum() / output.numel() ** 0.5
        for output in outputs
    )
    loss.backward()
    parameters = dict(model.named_parameters())
    gradients = convert_official(case['grads'])
    assert len(gradients) == len(case['grads'])
    for key, target in gradients.items():
        assert (parameters[key].grad - target).abs().max() <= 1e-5 * target.abs().max(), key


def test_all_generations_and_uses_are_covered():
    kinds = {(torch.load(path, weights_only=True)['arch']['generation'], path.stem.split('_')[1]) for path in CASES}
    assert kinds == {('dat', 'cls'), ('dat+', 'cls'), ('dat++', 'cls'), ('dat++', 'dense')}
