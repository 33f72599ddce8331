"""Weights from the official release load by every ordinary way; wrong ones are refused by name."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from in_process import run_tool
from mmengine.model import BaseModule
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import load_state_dict
from official_layout import to_official
from paths import DATA, TOOLS

from mmdat import DAT
from mmdat.errors import CheckpointError
from mmdat.models.checkpoint import Signature, convert_official, resize_table


def load_case(name):
    case = torch.load(DATA / f'{name}.pt', weights_only=True)
    facts = case['arch']
    arch = {field: facts[field] for field in ('generation', 'dims', 'depths', 'heads', 'groups', 'stage_spec')}
    return {key: value.float() for key, value in case['state_dict'].items()}, arch, facts.get('img_size', 224)


@pytest.fixture(params=['dat_cls', 'datplus_cls', 'datpp_cls_112'])
def official(request):
    """A classification model of the official release: state dict, arch, image size."""
    return load_case(request.param)


def same_weights(model, official_state_dict):
    """Whether a model holds an official file's weights, as far as it has the parameter."""
    own = model.state_dict()
    expected = convert_official(official_state_dict)
    return all(torch.equal(own[key], value) for key, value in expected.items() if not key.startswith('norm3'))


class Detector(BaseModule):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = torch.nn.Linear(2, 2)


# --- the ways to load ----------------------------------------------------------------------
@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: {'model': s},
        lambda s: {'state_dict': s},
        lambda s: s,
        lambda s: {'model': s, 'epoch': 3, 'optimizer': {'state': {}}},
        lambda s: {'state_dict': {f'backbone.{k}': v for k, v in s.items()}},
        lambda s: {'model': {f'module.{k}': v for k, v in s.items()}},
        lambda s: {'state_dict': {f'module.backbone.{k}': v for k, v in s.items()}},
        lambda s: {f'_orig_mod.{k}': v for k, v in s.items()},
        lambda s: {'model': {f'module._orig_mod.backbone.{k}': v for k, v in s.items()}},
    ],
    ids=['model', 'state_dict', 'bare', 'training', 'detector', 'ddp', 'ddp detector', 'compiled', 'ddp compiled'],
)
def test_init_cfg_takes_every_wrapper(official, wrap, tmp_path):
    state_dict, arch, img_size = official
    torch.save(wrap(state_dict), tmp_path / 'official.pth')
    model = DAT(arch, img_size, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'official.pth')))
    assert not same_weights(model, state_dict)
    model.init_weights()
    assert same_weights(model, state_dict)


def test_init_cfg_with_prefix_takes_the_backbone_of_a_detector(official, tmp_path):
    state_dict, arch, img_size = official
    torch.save({'state_dict': {f'backbone.{k}': v for k, v in state_dict.items()}}, tmp_path / 'detector.pth')
    model = DAT(
        arch, img_size, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'), prefix='backbone.')
    )
    model.init_weights()
    assert same_weights(model, state_dict)


def test_load_checkpoint_and_load_state_dict(official, tmp_path):
    state_dict, arch, img_size = official
    torch.save({'model': state_dict}, tmp_path / 'official.pth')
    parallel = {'model': {f'module.{key}': value for key, value in state_dict.items()}}
    for load in (
        lambda m: m.load_state_dict(parallel, strict=False),
        lambda m: load_checkpoint(m, str(tmp_path / 'official.pth'), map_location='cpu'),
        lambda m: load_state_dict(m, state_dict),
        lambda m: m.load_state_dict(state_dict, strict=False),
    ):
        model = DAT(arch, img_size)
        load(model)
        assert same_weights(model, state_dict)


def test_a_whole_detector_loads_strictly():
    state_dict, arch, img_size = load_case('datpp_dense_70x93')
    detector = Detector(DAT(arch, img_size))
    whole = {f'backbone.{k}': v for k, v in state_dict.items()}
    whole.update({'neck.weight': torch.ones(2, 2), 'neck.bias': torch.ones(2)})
    keys = dict(whole)
    detector.load_state_dict(whole)
    assert whole.keys() == keys.keys(), 'the dict of the caller was changed'
    assert same_weights(detector.backbone, state_dict)
    assert torch.equal(detector.neck.bias, torch.ones(2))


@pytest.mark.parametrize('position_bias', ['fixed', 'dwconv', 'log'])
def test_every_kind_of_position_bias_loads(nano, position_bias):
    """The official release calls all of them rpe_table."""
    model, other = [DAT(dict(nano, position_bias=position_bias), img_size=64, out_indices=(3,)) for _ in range(2)]
    other.load_state_dict(to_official(model.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_offset_networks_of_layers_without_offsets_are_left_out(nano):
    """Official models store them all the same."""
    model, other = [DAT(dict(nano, use_offsets=use), img_size=64, out_indices=(3,)) for use in (False, True)]
    official = to_official(model.state_dict())
    unused = {key: value for key, value in to_official(other.state_dict()).items() if '.conv_offset.' in key}
    assert unused
    model.load_state_dict({**official, **unused})


def test_what_follows_from_the_architecture_is_left_out(official):
    state_dict, arch, img_size = official
    state_dict['stages.0.attns.0.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
    state_dict['stages.0.attns.1.attn_mask'] = torch.zeros(4, 49, 49)
    DAT(arch, img_size, out_indices=(3,)).load_state_dict(state_dict)


def test_own_checkpoints_load_strictly(nano):
    model, other = DAT(nano, img_size=64), DAT(nano, img_size=64)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


# --- the final norm ------------------------------------------------------------------------
def test_cls_norm_becomes_the_norm_of_a_single_output(official):
    state_dict, arch, img_size = official
    model = DAT(arch, img_size, out_indices=(3,))
    model.load_state_dict(state_dict)
    assert torch.equal(model.norm3.weight, state_dict['cls_norm.norm.weight'])


def test_cls_norm_is_left_out_of_several_outputs(official):
    state_dict, arch, img_size = official
    model = DAT(arch, img_size)
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    assert sorted(missing) == sorted(f'norm{i}.{name}' for i in range(4) for name in ('weight', 'bias'))
    assert not unexpected
    assert torch.equal(model.norm3.weight, torch.ones_like(model.norm3.weight))


# --- tables of other sizes -----------------------------------------------------------------
def test_tables_are_resized(official):
    state_dict, arch, img_size = official
    model = DAT(arch, img_size=img_size * 2, window_size=11, out_indices=(3,))
    model.load_state_dict(state_dict)
    tables = {key: value for key, value in model.state_dict().items() if key.endswith('relative_position_bias_table')}
    for key, value in convert_official(state_dict).items():
        if key in tables:
            assert torch.equal(tables[key], resize_table(value, tables[key].shape))


def test_resized_tables_keep_their_geometry():
    ramp = torch.linspace(-1, 1, 13)
    table = (ramp[:, None] + 10 * ramp)[None].repeat(2, 1, 1)
    wide = resize_table(table, torch.Size((2, 27, 27)))
    centre = slice(6, 21)  # at its ends, bicubic interpolation bends a ramp
    expected = F.interpolate(table[None], size=(27, 27), mode='bilinear')[0]
    torch.testing.assert_close(wide[:, centre, centre], expected[:, centre, centre], atol=0.1, rtol=0)
    flat = resize_table(table.flatten(1).t(), torch.Size((27 * 27, 2)))
    torch.testing.assert_close(flat.t().reshape(2, 27, 27), wide)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('shape, other', [((2, 13, 13), (2, 27, 9)), ((13**2, 2), (23**2, 2))])
def test_resized_tables_keep_their_precision(dtype, shape, other):
    table = torch.randn(shape, dtype=dtype)
    resized = resize_table(table, torch.Size(other))
    assert resized.dtype == dtype and resized.shape == other
    # Computed in float32 at least, and rounded once.
    assert torch.equal(resized.float(), resize_table(table.double(), torch.Size(other)).to(dtype).float())


# --- wrong files ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    'file, model',
    [('tiny', 'small'), ('base', 'tiny'), ('tiny++', 'small++'), ('small++', 'small'), ('tiny+', 'tiny++')],
)
@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_another_size_is_refused_with_its_name(file, model, prefix):
    with torch.device('meta'):
        state_dict, target = DAT(file).state_dict(), DAT(model)
    state_dict = {prefix + key: value for key, value in state_dict.items()}
    target = Detector(target) if prefix else target
    for load in (target.load_state_dict, lambda s: load_state_dict(target, s)):
        with pytest.raises(
            RuntimeError, match=f"weights are of arch='{file}'.* backbone is arch='{model}'".replace('+', r'\+')
        ):
            load(state_dict)


def test_missing_and_unexpected_keys_are_reported(official):
    state_dict, arch, img_size = official
    del state_dict['stages.2.attns.1.proj_q.weight']
    state_dict['stages.0.attns.0.another'] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        DAT(arch, img_size, out_indices=(3,)).load_state_dict(state_dict)
    assert 'stages.2.blocks.1.mixer.proj_q.weight' in str(error.value)
    assert 'stages.0.blocks.0.mixer.another' in str(error.value)


def test_weights_of_another_model_are_refused(nano):
    with pytest.raises(CheckpointError, match='not of a DAT; they have, for example, conv1.weight'):
        DAT(nano, img_size=64).load_state_dict({'conv1.weight': torch.zeros(1), 'bn1.weight': torch.zeros(1)})


def test_only_tables_are_resized(official):
    """Another shape of any other weight is reported, as is a table that the model does not have."""
    state_dict, arch, img_size = official
    state_dict['stages.0.attns.7.rpe_table'] = torch.zeros(2, 5, 5)
    state_dict['patch_proj.0.bias'] = torch.zeros(3)
    with pytest.raises(RuntimeError) as error:
        DAT(arch, img_size, out_indices=(3,)).load_state_dict(state_dict)
    assert 'Unexpected key(s) in state_dict: "stages.0.blocks.7.mixer.relative_position_bias_table"' in str(error.value)
    assert 'size mismatch for stem.0.bias' in str(error.value)


def test_unknown_architectures_are_described(nano):
    signature = Signature.of(DAT(nano, img_size=64).state_dict())
    assert signature.name is None
    conv = nano['generation'] == 'dat++'
    assert f'conv_stem={conv}, conv_mlp={conv}, lpu={conv}, dims=(16, 32, 64, 128)' in str(signature)


@pytest.mark.parametrize('part', ['conv_stem', 'conv_mlp', 'lpu'])
def test_another_part_is_refused_by_its_name(nano, part):
    model = DAT(nano, img_size=64)
    other = DAT(dict(nano, **{part: not getattr(model.arch, part)}), img_size=64)
    with pytest.raises(CheckpointError, match=f'{part}={not getattr(model.arch, part)}.* but .*{part}='):
        model.load_state_dict(other.state_dict())


# --- the tool ------------------------------------------------------------------------------
@pytest.fixture
def convert(monkeypatch, capsys):
    """Run tools/convert_checkpoint.py in this process; returns what it says when it gives up."""

    def run(*args):
        if run_tool(monkeypatch, 'convert_checkpoint', *args):
            return capsys.readouterr().err.splitlines()[-1]

    return run


def test_convert_as_a_command(tmp_path):
    result = subprocess.run(
        [sys.executable, TOOLS / 'convert_checkpoint.py', 'none.pth', 'out.pth'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f'convert_checkpoint.py: there is no checkpoint {tmp_path}/none.pth: correct')
    assert len(result.stderr.strip().splitlines()) == 1


def test_convert_classifier(official, tmp_path, convert):
    state_dict, arch, img_size = official
    torch.save({'model': state_dict}, tmp_path / 'official.pth')
    assert convert(tmp_path / 'official.pth', tmp_path / 'mmdat.pth') is None
    converted = torch.load(tmp_path / 'mmdat.pth', weights_only=True)['state_dict']
    assert torch.equal(converted.pop('head.fc.weight'), state_dict['cls_head.weight'])
    assert torch.equal(converted.pop('head.fc.bias'), state_dict['cls_head.bias'])
    detector = Detector(DAT(arch, img_size, out_indices=(3,)))
    missing, unexpected = detector.load_state_dict(converted, strict=False)
    assert missing == ['neck.weight', 'neck.bias'] and not unexpected
    model = DAT(arch, img_size, init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'mmdat.pth')))
    model.init_weights()
    assert same_weights(model, state_dict)


def test_convert_keeps_the_rest_of_a_detector(tmp_path, convert):
    state_dict, arch, img_size = load_case('datpp_dense_70x93')
    whole = {f'backbone.{key}': value for key, value in state_dict.items()}
    whole['neck.lateral_convs.0.conv.weight'] = torch.ones(3)
    torch.save({'meta': {}, 'state_dict': whole}, tmp_path / 'detector.pth')
    assert convert(tmp_path / 'detector.pth', tmp_path / 'mmdat.pth') is None
    converted = torch.load(tmp_path / 'mmdat.pth', weights_only=True)['state_dict']
    assert torch.equal(converted.pop('neck.lateral_convs.0.conv.weight'), torch.ones(3))
    DAT(arch, img_size).load_state_dict({key[len('backbone.') :]: value for key, value in converted.items()})


@pytest.mark.parametrize(
    'make, args, message',
    [
        (lambda path: path.write_bytes(b'hello'), [], 'not a readable PyTorch checkpoint'),
        (
            lambda path: torch.save({'model': {'conv.weight': torch.ones(1)}}, path),
            [],
            'holds no whole DAT',
        ),
        (
            lambda path: torch.save({'model': load_case('dat_cls')[0]}, path),
            ['--img-size', '384'],
            'only be resized for a published architecture',
        ),
    ],
    ids=['garbage', 'other model', 'resize'],
)
def test_convert_refuses_in_one_sentence(tmp_path, convert, make, args, message):
    make(tmp_path / 'in.pth')
    said = convert(tmp_path / 'in.pth', tmp_path / 'out.pth', *args)
    assert message in said and len(said.splitlines()) == 1
    assert not (tmp_path / 'out.pth').exists()


def test_convert_overwrites_only_when_forced(tmp_path, convert):
    torch.save({'model': load_case('dat_cls')[0]}, tmp_path / 'in.pth')
    (tmp_path / 'out.pth').write_text('precious')
    assert 'exists' in convert(tmp_path / 'in.pth', tmp_path / 'out.pth')
    assert (tmp_path / 'out.pth').read_text() == 'precious'
    assert convert(tmp_path / 'in.pth', tmp_path / 'out.pth', '--force') is None


@pytest.mark.parametrize('arch, window_size', [('tiny', 12), ('tiny++', 7)])
def test_convert_resizes_tables(tmp_path, convert, arch, window_size):
    """A published 224 model, written in the official layout, becomes a 384 model."""
    model = DAT(arch, out_indices=(3,))
    torch.save({'model': to_official(model.state_dict())}, tmp_path / 'in.pth')
    assert convert(tmp_path / 'in.pth', tmp_path / 'out.pth', '--img-size', 384, '--window-size', window_size) is None
    converted = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    DAT(arch, img_size=384, window_size=window_size, out_indices=(3,)).load_state_dict(
        {key[len('backbone.') :]: value for key, value in converted.items()}
    )


@pytest.mark.parametrize('name', ['dat_cls', 'datplus_cls', 'datpp_cls_112', 'datpp_dense_70x93'])
def test_the_layout_that_tests_write_is_the_official_one(name):
    state_dict, arch, img_size = load_case(name)
    model = DAT(arch, img_size, out_indices=(3,) if 'cls' in name else (0, 1, 2, 3))
    written = to_official(model.state_dict())
    shapes = {key: value.shape for key, value in state_dict.items() if not key.startswith('cls_head')}
    assert {key: value.shape for key, value in written.items()} == shapes
