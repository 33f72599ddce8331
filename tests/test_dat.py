"""The backbone as its users meet it: sizes, contract, errors."""

import copy

import mmdet.models  # noqa: F401  (registers the toolboxes' modules)
import mmpretrain.models  # noqa: F401
import mmseg.models  # noqa: F401
import pytest
import torch
from mmdet.registry import MODELS as MMDET
from mmengine.registry import MODELS as MMENGINE
from mmpretrain.registry import MODELS as MMPRETRAIN
from mmseg.registry import MODELS as MMSEG

import mmdat
from mmdat import DAT, DeformableAttention
from mmdat.models.arch import ARCHS

PUBLISHED_PARAMETERS = {
    'tiny': 28_319_138,
    'small': 49_700_402,
    'base': 87_881_632,
    'tiny++': 23_962_876,
    'small++': 53_127_366,
    'base++': 93_690_640,
}


def num_parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('arch', ARCHS)
def test_parameter_count_is_the_published_one(arch):
    with torch.device('meta'):
        model = DAT(arch, out_indices=(3,))
        head = torch.nn.Linear(model.out_channels[0], 1000)
    assert num_parameters(model) + num_parameters(head) == PUBLISHED_PARAMETERS[arch]


@pytest.mark.parametrize('registry', [MMENGINE, MMDET, MMSEG, MMPRETRAIN], ids=lambda r: f'{r.scope}')
def test_every_toolbox_builds_it_by_name(registry, nano):
    assert type(registry.build(dict(type='mmdat.DAT', arch=nano))) is mmdat.DAT


# --- outputs -------------------------------------------------------------------------------
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (3,), (3, 0)])
def test_outputs_are_in_the_order_of_out_indices(nano, out_indices):
    model = DAT(nano, img_size=64, out_indices=out_indices).eval()
    outputs = model(torch.randn(2, 3, 64, 96))
    assert isinstance(outputs, tuple)
    assert model.out_channels == tuple(nano['dims'][i] for i in out_indices)
    for output, channels, stride in zip(outputs, model.out_channels, model.out_strides):
        assert output.shape == (2, channels, 64 // stride, 96 // stride)
        assert output.is_contiguous()


def test_an_output_does_not_depend_on_which_others_are_returned(nano):
    model = DAT(nano, img_size=64).eval()
    alone = DAT(nano, img_size=64, out_indices=(2,)).eval()
    alone.load_state_dict(model.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(alone(x)[0], model(x)[2])


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (32, 101), (75, 64), (224, 40), (131, 97)])
def test_any_size_gives_finite_outputs_and_gradients(nano, size):
    model = DAT(nano, img_size=64)
    outputs = model(torch.randn(2, 3, *size))
    sum(output.square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('position_bias', ['table', 'fixed', 'dwconv', 'log', 'none'])
@pytest.mark.parametrize('size', [(1, 1), (1, 9), (8, 2), (13, 5)])
@pytest.mark.parametrize('convention', ['dat', 'dat++'])
@pytest.mark.parametrize('offset_range', [None, 2.0])
def test_degenerate_maps_are_finite(position_bias, size, convention, offset_range):
    layer = DeformableAttention(8, 4, 2, (4, 4), 3, 2, offset_range, convention, position_bias)
    x = torch.randn(2, 8, *size, requires_grad=True)
    out = layer(x)
    out.square().mean().backward()
    assert out.shape == x.shape
    assert out.isfinite().all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize('size', [(1, 1), (3, 9), (2, 3)])
def test_maps_smaller_than_a_key_cell_have_one_key_along_that_side(size):
    x = torch.randn(2, 8, *size)
    for options in (dict(), dict(position_bias='fixed')):
        layer = DeformableAttention(8, 4, 2, (2, 2), 4, 4, **options)
        with mmdat.record_sampling(torch.nn.Sequential(layer)) as points:
            assert layer(x).isfinite().all()
        assert points['0'][0].position.shape[2:4] == tuple(max(side // 4, 1) for side in size)
    pooled = DeformableAttention(8, 4, 2, (2, 2), 4, 4, use_offsets=False)
    if max(size) < 4:  # one key, their mean: everything attends to it
        mean = pooled.proj_out(pooled.proj_v(x.mean((2, 3), keepdim=True)))
        torch.testing.assert_close(pooled(x), mean.expand_as(x))
    assert pooled(x).isfinite().all()


@pytest.mark.parametrize('size', [(31, 64), (64, 8)])
def test_too_small_images_are_refused(nano, size):
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]}'):
        DAT(nano, img_size=64)(torch.randn(1, 3, *size))


def test_other_numbers_of_image_channels(nano):
    assert DAT(nano, img_size=64, in_channels=5)(torch.randn(1, 5, 64, 64))[0].shape[1] == nano['dims'][0]


# --- training ------------------------------------------------------------------------------
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 4])
def test_frozen_stages(nano, frozen_stages):
    model = DAT(nano, img_size=64, frozen_stages=frozen_stages, drop_path_rate=0.5).train()
    frozen = ['stem.'] if frozen_stages >= 0 else []
    frozen += [f'{part}.{i}.' for i in range(frozen_stages) for part in ('stages', 'downsamples')]
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for name, module in model.named_modules():
        if name:
            assert module.training != f'{name}.'.startswith(tuple(frozen)) or name in ('stages', 'downsamples'), name
    outputs = model(torch.randn(1, 3, 64, 64))
    sum(output.mean() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) != parameter.requires_grad, name


def test_checkpointing_changes_memory_not_numbers(nano):
    model = DAT(nano, img_size=64).double().train()
    other = DAT(nano, img_size=64, with_cp=True).double().train()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64).double()
    for m in (model, other):
        sum(output.square().sum() for output in m(x)).backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_drop_path_rises_linearly_over_all_blocks(nano):
    model = DAT(nano, img_size=64, drop_path_rate=0.5)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])


def test_dropout_is_random_in_training_only(nano):
    model = DAT(nano, img_size=64, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model.train()(x)[3], model(x)[3])
    assert torch.equal(model.eval()(x)[3], model(x)[3])


def test_autocast_keeps_positions_in_float32(nano):
    model = DAT(nano, img_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    exact = model(x)
    with mmdat.record_sampling(model) as points, torch.autocast('cpu', torch.bfloat16):
        outputs = model(x)
    assert all(record.position.dtype == torch.float32 for records in points.values() for record in records)
    for output, target in zip(outputs, exact):
        assert (output - target).abs().mean() < 0.1 * target.abs().mean()  # bfloat16 has 8 bits


def test_double_precision_and_deepcopy(nano):
    model = DAT(nano, img_size=64).double().eval()
    x = torch.randn(1, 3, 64, 64).double()
    assert torch.equal(copy.deepcopy(model)(x)[3], model(x)[3])


# --- the hook point ------------------------------------------------------------------------
def test_record_sampling_hands_out_every_deformable_layer(nano):
    model = DAT(nano, img_size=64).eval()
    x = torch.randn(2, 3, 64, 96)
    plain = model(x)
    with mmdat.record_sampling(model) as points:
        recorded = model(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded))
    layers = [name for name, m in model.named_modules() if isinstance(m, DeformableAttention)]
    assert list(points) == layers and layers
    for name, [record] in points.items():
        stage = int(name.split('.')[1])
        stride = 1 if nano['generation'] == 'dat' else (8, 4, 2, 1)[stage]
        shape = (2, nano['groups'][stage], 64 // 2 ** (stage + 2) // stride, 96 // 2 ** (stage + 2) // stride, 2)
        assert record.position.shape == record.offset.shape == shape
        assert record.reference.shape == shape[2:]
        position = record.reference + record.offset
        if nano['generation'] == 'dat++':
            position = position.clamp(-1, 1)
        assert torch.equal(record.position, position)
    model(x)
    assert all(len(records) == 1 for records in points.values()), 'recording goes on after the with block'


# --- errors --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'change, message',
    [
        (dict(heads=(3, 2, 4, 8)), r'heads\[0\]=3 does not divide dims\[0\]=16'),
        (dict(groups=(1, 1, 3, 4)), r'groups\[2\]=3 does not divide heads\[2\]=4'),
        (dict(groups=(1, 1, -1, -1)), r'groups\[2\]=-1 is not a positive'),
        (dict(depths=(1, 1, 2)), r'depths has 3 entries'),
        (dict(depths=(1, 1, 3, 3)), r'but depths\[\d\]='),
        (dict(stage_spec=('LX', 'D', 'LD', 'LD')), r"stage_spec\[0\]='LX' has the unknown letter 'X'"),
        (dict(generation='dat+++'), r"generation must be .* got 'dat\+\+\+'"),
        (dict(dims=96), r'dims must list 4 stages, got 96'),
        (dict(dims=(16, 32, 64, 0)), r'dims\[3\]=0 is not a positive'),
        (dict(dim_stem=24), r'dim_stem=24 differs from dims\[0\]=16'),
        (dict(position_bias='tabel'), r"position_bias\[\d\]='tabel' is unknown"),
        (dict(offset_range=-1), r'offset_range\[\d\]=-1 is not positive'),
        (dict(offset_kernels=(9, 7, 4, 3)), r'offset_kernels\[2\]=4 is even'),
        (dict(window=7), r"unknown field 'window'=7"),
    ],
)
def test_wrong_architectures_are_refused(nano, change, message):
    with pytest.raises(ValueError, match=message):
        DAT({**nano, **change})


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='tiny+'), "unknown arch 'tiny\\+'"),
        (dict(arch=dict(dims=(1, 2, 3, 4))), "lacks the field 'generation'"),
        (dict(arch=3), 'must be a name or a dict'),
        (dict(out_indices=(0, 4)), r'out_indices .* got \(0, 4\)'),
        (dict(out_indices=()), r'out_indices .* got \(\)'),
        (dict(out_indices=(1, 1)), r'out_indices .* got \(1, 1\)'),
        (dict(frozen_stages=5), 'frozen_stages .* got 5'),
        (dict(img_size=16), r'img_size .* got \(16, 16\)'),
        (dict(drop_path_rate=1.5), 'drop_path_rate .* got 1.5'),
        (dict(window_size=1), 'window_size .* got 1'),
        (dict(arch='tiny++', window_size=8), 'odd kernel_size .* got 8'),
        (dict(sampler='cuda'), "sampler .* got 'cuda'"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with torch.device('meta'), pytest.raises(ValueError, match=message):
        DAT(**kwargs)
