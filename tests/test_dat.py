"""The backbone as its users meet it: sizes, contract, errors."""

import copy
import dataclasses
import itertools
import pickle
import warnings

import pytest
import torch

import mmdat
from mmdat import DAT, DeformableAttention
from mmdat.models.arch import ARCHS, GENERATIONS, get_arch

pytestmark = pytest.mark.usefixtures('on_device')

PUBLISHED_PARAMETERS = {
    'tiny': 28_319_138,
    'small': 49_700_402,
    'base': 87_881_632,
    'tiny+': 22_772_796,
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
        mean = pooled.proj_out(pooled.proj_v(x.mean((2, 3))))
        torch.testing.assert_close(pooled(x), mean[..., None, None].expand_as(x))
    assert pooled(x).isfinite().all()


@pytest.mark.parametrize('size', [(31, 64), (64, 8)])
def test_too_small_images_are_refused(nano, size):
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]}'):
        DAT(nano, img_size=64)(torch.randn(1, 3, *size))


def test_other_numbers_of_image_channels(nano):
    assert DAT(nano, img_size=64, in_channels=5)(torch.randn(1, 5, 64, 64))[0].shape[1] == nano['dims'][0]


@pytest.mark.parametrize(
    'given, stages', [(3, (3,)), (0, (0,)), (-1, (3,)), ((-1,), (3,)), ((-2, 0), (2, 0)), ([1, -1], (1, 3))]
)
def test_out_indices_may_be_one_number_and_count_from_the_end(nano, given, stages):
    model = DAT(nano, img_size=64, out_indices=given).eval()
    expected = DAT(nano, img_size=64, out_indices=stages).eval()
    model.load_state_dict(expected.state_dict())
    x = torch.randn(1, 3, 64, 64)
    outs = model(x)
    assert isinstance(outs, tuple) and len(outs) == len(stages)
    assert all(torch.equal(out, other) for out, other in zip(outs, expected(x)))


def test_one_bare_map_in_place_of_a_tuple(nano):
    """As recognisers of mmaction2 and mmocr take it."""
    model = DAT(nano, img_size=64, out_indices=(2,)).eval()
    bare = DAT(nano, img_size=64, out_indices=(2,), as_tuple=False).eval()
    bare.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(bare(x), model(x)[0])
    with pytest.raises(ValueError, match=r'as_tuple=False returns one map, but out_indices=\(2, 3\) names several'):
        DAT(nano, out_indices=(2, 3), as_tuple=False)


def test_memory_layout_of_the_image_does_not_matter(nano):
    model = DAT(nano, img_size=64).double().eval()
    x = torch.randn(2, 3, 70, 64).double()
    expected = model(x)
    last = x.contiguous(memory_format=torch.channels_last)
    for outs in (model(last), model(x.transpose(2, 3).contiguous().transpose(2, 3))):
        for out, other in zip(outs, expected):
            assert out.is_contiguous()
            torch.testing.assert_close(out, other)
    for out, other in zip(model.to(memory_format=torch.channels_last)(last), expected):
        torch.testing.assert_close(out, other)


# --- parts ---------------------------------------------------------------------------------
@pytest.mark.parametrize('conv_stem, conv_mlp, lpu', itertools.product([False, True], repeat=3))
def test_every_part_is_free(nano, conv_stem, conv_mlp, lpu):
    model = DAT(dict(nano, conv_stem=conv_stem, conv_mlp=conv_mlp, lpu=lpu), img_size=64)
    convs = [m for m in (*model.stem.modules(), *model.downsamples.modules()) if isinstance(m, torch.nn.Conv2d)]
    kernels = {conv.kernel_size for conv in convs}
    assert kernels == ({(3, 3)} if conv_stem else {(4, 4), (2, 2)})
    names = ' '.join(name for name, _ in model.named_parameters())
    assert ('.mlp.dwconv.' in names) == conv_mlp and ('.lpu.' in names) == lpu
    outs = model(torch.randn(1, 3, 70, 64))
    assert [tuple(out.shape[2:]) for out in outs] == (
        [(18, 16), (9, 8), (5, 4), (3, 2)] if conv_stem else [(17, 16), (8, 8), (4, 4), (2, 2)]
    )
    sum(out.square().mean() for out in outs).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('generation', GENERATIONS)
def test_generation_is_short_for_its_parts(generation):
    arch = {**ARCHS['tiny'], 'generation': generation}
    parts = {name: value for name, value in arch.items() if name != 'generation'}
    assert get_arch(arch) == get_arch({**parts, **GENERATIONS[generation]})
    other = 'dat' if generation != 'dat' else 'dat++'
    assert get_arch({**arch, 'convention': other}).convention == other


def test_an_architecture_does_not_change(nano):
    arch = DAT(nano, img_size=64).arch
    with pytest.raises(dataclasses.FrozenInstanceError):
        arch.lpu = True
    assert pickle.loads(pickle.dumps(arch)) == arch == get_arch(arch)
    assert DAT(arch, img_size=64).arch is arch


# --- what the model says of itself ---------------------------------------------------------
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3, 1), -1])
def test_feature_info_describes_the_outputs(nano, out_indices):
    model = DAT(nano, img_size=64, out_indices=out_indices).eval()
    made = {}
    for info in model.feature_info:
        module = model.get_submodule(info['module'])
        module.register_forward_hook(lambda module, args, out, name=info['module']: made.__setitem__(name, out))
    outs = model(torch.randn(1, 3, 64, 128))
    assert len(outs) == len(model.feature_info)
    for out, info in zip(outs, model.feature_info):
        assert out.shape == made[info['module']].shape
        assert out.shape == (1, info['num_chs'], 64 // info['reduction'], 128 // info['reduction'])
        norm = model.get_submodule(f'norm{info["index"]}')
        assert norm.weight.shape == (info['num_chs'],)


@pytest.mark.parametrize('position_bias', ['table', 'fixed', 'log'])
def test_no_weight_decay_names_norms_and_tables(nano, position_bias):
    model = DAT({**nano, 'position_bias': position_bias}, img_size=64)
    parameters = dict(model.named_parameters())
    named = model.no_weight_decay()
    assert named <= set(parameters)
    assert named >= {'stem.1.weight', 'downsamples.0.1.bias', 'norm3.weight', 'stages.0.blocks.0.norm2.bias'}
    tables = {name for name in named if parameters[name].dim() > 1}
    assert tables == {name for name in parameters if name.endswith('relative_position_bias_table')}
    # Of what is left, vectors are biases: those of linear layers and convolutions.
    assert all(name.endswith('.bias') for name in set(parameters) - named if parameters[name].dim() == 1)


# --- other forms of the model --------------------------------------------------------------
@pytest.mark.parametrize('change', [dict(), dict(position_bias='log'), dict(position_bias='fixed')])
def test_a_traced_program_is_right_at_other_sizes(nano, change):
    """torch.jit.trace, which counters of multiply-adds and older exporters use, keeps sizes as they are at run time."""
    model = DAT({**nano, **change}, img_size=64).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it is deprecated
        program = torch.jit.trace(model, torch.randn(1, 3, 128, 160), check_trace=False)
        for shape in [(1, 3, 128, 160), (2, 3, 70, 128), (1, 3, 32, 45)]:
            x = torch.randn(shape)
            for out, other in zip(program(x), model(x)):
                torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)


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
    others = [DAT(nano, img_size=64, with_cp=with_cp).double().train() for with_cp in (True, False)]
    others[1].set_grad_checkpointing()
    x = torch.randn(2, 3, 64, 64).double()
    kept = []
    for m in (model, *others):
        m.load_state_dict(model.state_dict())
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            outs = m(x)
        kept.append(sum(sizes))
        sum(output.square().sum() for output in outs).backward()
    assert kept[1] == kept[2] < kept[0] / 2
    for other in others:
        for (name, p), q in zip(model.named_parameters(), other.parameters()):
            torch.testing.assert_close(p.grad, q.grad, msg=name)
    others[1].set_grad_checkpointing(False)
    assert not any(block.with_cp for stage in others[1].stages for block in stage.blocks)


@pytest.mark.parametrize('in_channels, position_bias', [(3, 'table'), (1, 'fixed'), (1, 'dwconv'), (3, 'log')])
def test_gradients_are_laid_out_as_their_weights(nano, in_channels, position_bias):
    """Or DistributedDataParallel warns of their strides and copies them. Few heads make sides of one."""
    arch = dict(nano, position_bias=position_bias, heads=(1, 1, 2, 2), groups=(1, 1, 2, 2))
    model = DAT(arch, img_size=64, in_channels=in_channels)
    for size in (64, 32):
        model.zero_grad()
        sum(out.square().mean() for out in model(torch.randn(2, in_channels, size, size))).backward()
        assert [name for name, p in model.named_parameters() if p.grad.stride() != p.stride()] == []


def test_drop_path_rises_linearly_over_all_blocks(nano):
    model = DAT(nano, img_size=64, drop_path_rate=0.5)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.5 * i / (len(rates) - 1) for i in range(len(rates))])


def test_drop_path_leaves_out_whole_images_and_keeps_the_mean(nano):
    drop_path = DAT(nano, img_size=64, drop_path_rate=0.4).stages[3].blocks[-1].drop_path
    x = torch.randn(4000, 1, 2, 2)
    out = drop_path.train()(x)
    kept = (out != 0).flatten(1).any(1)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.03)
    torch.testing.assert_close(out[kept], x[kept] / 0.6)
    assert torch.equal(drop_path.eval()(x), x)


def test_dropout_is_random_in_training_only(nano):
    model = DAT(nano, img_size=64, drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.2)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model.train()(x)[3], model(x)[3])
    assert torch.equal(model.eval()(x)[3], model(x)[3])


def test_autocast_keeps_positions_in_float32(nano):
    model = DAT(nano, img_size=64).eval()
    x = torch.randn(1, 3, 64, 64)
    exact = model(x)
    with mmdat.record_sampling(model) as points, torch.autocast(x.device.type, torch.bfloat16):
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
        (dict(lpu='yes'), r"lpu must be True or False, got 'yes'"),
        (dict(convention='dat+'), r"convention must be one of .* got 'dat\+'"),
        (dict(position_bias='tabel'), r"position_bias\[\d\]='tabel' is unknown"),
        (dict(offset_range=-1), r'offset_range\[\d\]=-1 is not positive'),
        (dict(offset_range='2'), r"offset_range\[\d\]='2' is not positive"),
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
        (dict(arch='tiny+++'), r"unknown arch 'tiny\+\+\+'"),
        (dict(arch=dict(dims=(1, 2, 3, 4))), r"lacks the field 'depths'.* dict\(mmdat.models.arch.ARCHS"),
        (dict(arch={k: v for k, v in ARCHS['tiny'].items() if k != 'generation'}), "lacks the field 'generation'"),
        (dict(arch=3), 'must be a name or a dict'),
        (dict(out_indices=(0, 4)), r'out_indices .* got \(0, 4\)'),
        (dict(out_indices=4), r'out_indices .* got \(4,\)'),
        (dict(out_indices=(-5,)), r'out_indices .* got \(-5,\)'),
        (dict(out_indices=(3, -1)), r'out_indices .* got \(3, -1\)'),
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
