"""Any size, any number: properties that hold for all architectures, image sizes, layouts and precisions.

Hypothesis draws the cases, the same in every run. Each property is held by a few cases in the default run and by many
in the slow one.
"""

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mmdat import DAT, DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention
from mmdat.models.dat import MIN_SIZE
from mmdat.models.mixers.deformable import POSITION_BIASES
from mmdat.ops import TableBias, deformable_attention

pytestmark = pytest.mark.usefixtures('on_device')
LARGEST = 1500
#: Dtype, whether autocast makes bfloat16 of it, and how far the fast form may be from the naive one: outputs and
#: gradients, as parts of the largest value.
PRECISIONS = {
    'float64': (torch.float64, False, 1e-10, 1e-8),
    'float32': (torch.float32, False, 1e-4, 1e-3),
    'bfloat16': (torch.float32, True, 0.05, None),
}


def cases(few, many):
    """Parametrise a test by the number of cases: few, and many in the slow run."""
    return pytest.mark.parametrize('cases', [few, pytest.param(many, marks=pytest.mark.slow)])


def check(cases, holds, **strategies):
    """Let hypothesis look for a case in which a function raises."""
    settings(
        max_examples=cases,
        derandomize=True,  # the same cases every time
        phases=[Phase.generate],  # not shrink, which takes minutes
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(**strategies)(holds))()


# --- what is drawn -------------------------------------------------------------------------
precisions = st.sampled_from(sorted(PRECISIONS))
seeds = st.integers(0, 2**32 - 1)
#: How much larger than at initialisation offsets are.
spreads = st.sampled_from([1.0, 30.0, 1e4])


@st.composite
def sizes(draw, smallest, largest, area):
    """Height and width; large ones are narrow, of about ``area`` at most."""
    long = draw(st.integers(smallest, largest))
    short = draw(st.integers(smallest, min(long, max(area // long, smallest))))
    return draw(st.permutations([long, short]).map(tuple))


images = sizes(MIN_SIZE, LARGEST, 8_000)
maps = sizes(1, 200, 300)


@st.composite
def heads_and_groups(draw):
    heads = draw(st.integers(1, 4))
    return heads, draw(st.sampled_from([n for n in range(1, heads + 1) if heads % n == 0]))


@st.composite
def deformable(draw):
    """Arguments of deformable attention that the two forms share with a stage of an architecture."""
    stride = draw(st.sampled_from([1, 2, 3, 4, 8]))
    return dict(
        stride=stride,
        kernel_size=draw(st.sampled_from([1, 3, 5, 9, stride])),
        offset_range=draw(st.sampled_from([None, 0.5, 2.0, 100.0])),
        position_bias=draw(st.sampled_from(POSITION_BIASES)),
        use_offsets=draw(st.sampled_from([True, True, True, False])),
    )


@st.composite
def archs(draw, generation):
    stages = []
    for _ in range(4):
        heads, groups = draw(heads_and_groups())
        layer = draw(deformable())
        stages.append(
            dict(
                heads=heads,
                groups=groups,
                dims=heads * draw(st.integers(2, 6)),
                stage_spec=draw(st.text('LSND', min_size=1, max_size=2)),
                key_strides=layer['stride'],
                offset_kernels=layer['kernel_size'],
                **{key: layer[key] for key in ('offset_range', 'position_bias', 'use_offsets')},
            )
        )
    arch = {key: tuple(stage[key] for stage in stages) for key in stages[0]}
    return dict(arch, generation=generation, depths=tuple(map(len, arch['stage_spec'])))


# --- how results are compared --------------------------------------------------------------
def make_random(model, spread):
    """Weights that let nothing hide: position biases as large as scores, offsets of any size."""
    for name, parameter in model.named_parameters():
        if 'relative_position_bias_table' in name:
            torch.nn.init.normal_(parameter)
        elif name.endswith('offset_net.3.weight'):
            parameter.data.mul_(spread)


def twins(make, spread):
    """A fast and a naive module of the same random weights: by tiles, whatever the size of the map."""
    fast, naive = make('tiled'), make('naive')
    make_random(fast, spread)
    naive.load_state_dict(fast.state_dict())
    return fast, naive


def results(module, x, precision):
    """Outputs, and gradients of the input and the parameters that are used; all of them finite."""
    dtype, autocast, *_ = PRECISIONS[precision]
    module = module.to(dtype)
    x = x.to(dtype).detach().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        outs = module(x)
    outs = outs if isinstance(outs, tuple) else (outs,)
    generator = torch.Generator(x.device).manual_seed(1)
    # Mean squares would not do: behind a norm they are constant.
    loss = sum((out.to(dtype) * torch.randn(out.shape, generator=generator, device=x.device)).sum() for out in outs)
    # In bfloat16 on CPUs, PyTorch's depthwise convolution of maps narrower than its kernel leaves parts of the gradient
    # of its weight undefined (docs/measurements/reliability.md).
    undefined = 'offset_net.0.weight' if autocast else '-'
    parameters = [parameter for name, parameter in module.named_parameters() if not name.endswith(undefined)]
    grads = torch.autograd.grad(loss, [x, *parameters], allow_unused=True)
    grads = [grad for grad in grads if grad is not None]
    assert all(value.isfinite().all() for value in (*outs, *grads))
    return [out.detach() for out in outs], grads


def assert_same(fast, naive, precision):
    *_, of_outputs, of_gradients = PRECISIONS[precision]
    for some, others, tolerance in zip(fast, naive, (of_outputs, of_gradients)):
        assert len(some) == len(others)
        largest = max(1e-3, *(value.abs().max() for value in others))
        for value, other in zip(some, others):
            assert value.shape == other.shape and value.dtype == other.dtype
            assert tolerance is None or (value - other).abs().max() <= tolerance * largest


# --- properties ----------------------------------------------------------------------------
@pytest.mark.parametrize('generation', ['dat', 'dat++'])
@cases(3, 75)
def test_backbones(cases, generation):
    """Maps of the right sizes, finite, the numbers of the naive form, finite gradients."""

    def holds(arch, img_size, window_size, size, batch, channels_last, precision, spread, seed):
        torch.manual_seed(seed)
        fast, naive = twins(lambda impl: DAT(arch, img_size, window_size=window_size, attn_impl=impl), spread)
        x = torch.randn(batch, 3, *size)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        outs, grads = results(fast, x, precision)
        for out, channels, stride in zip(outs, arch['dims'], fast.out_strides):
            up = stride - 1 if generation == 'dat++' else 0
            assert out.shape == (batch, channels, *((side + up) // stride for side in size))
        if precision != 'float64' and spread > 1:
            return  # large offsets make other positions of a rounding error
        assert_same((outs, grads), results(naive, x, precision), precision)

    check(
        cases,
        holds,
        arch=archs(generation),
        img_size=sizes(MIN_SIZE, 96, 4000),
        window_size=st.sampled_from([3, 5, 7]),
        size=images,
        batch=st.sampled_from([1, 1, 2, 3, 4]),
        channels_last=st.booleans(),
        precision=precisions,
        spread=spreads,
        seed=seeds,
    )


@pytest.mark.parametrize('convention', ['dat', 'dat++'])
@cases(5, 85)
def test_deformable_attention(cases, convention):
    """Every kind of position bias on maps of any size, also those smaller than a key cell."""

    def holds(heads_and_groups, dim, options, map_size, sampler, size, batch, precision, spread, seed):
        torch.manual_seed(seed)
        heads, groups = heads_and_groups
        fast, naive = twins(
            lambda impl: DeformableAttention(
                heads * dim, heads, groups, map_size, convention=convention, sampler=sampler, impl=impl, **options
            ),
            spread,
        )
        x = torch.randn(batch, heads * dim, *size)
        assert_same(results(fast, x, precision), results(naive, x, precision), precision)

    check(
        cases,
        holds,
        heads_and_groups=heads_and_groups(),
        dim=st.integers(1, 6),
        options=deformable(),
        map_size=sizes(1, 24, 300),
        sampler=st.sampled_from(['torch', 'mmcv']),
        size=maps,
        batch=st.integers(1, 4),
        precision=precisions,
        spread=spreads,
        seed=seeds,
    )


@cases(6, 80)
def test_local_attention(cases):
    """Windows and neighbourhoods of any side on maps of any size, also smaller ones."""

    def holds(kind, window, heads, dim, size, batch, precision, seed):
        torch.manual_seed(seed)
        if kind is NeighborhoodAttention:
            window += 1 - window % 2
        fast, naive = twins(lambda impl: kind(heads * dim, heads, window, impl=impl), 1.0)
        x = torch.randn(batch, heads * dim, *size)
        assert_same(results(fast, x, precision), results(naive, x, precision), precision)

    check(
        cases,
        holds,
        kind=st.sampled_from([WindowAttention, ShiftedWindowAttention, NeighborhoodAttention]),
        window=st.integers(2, 10),
        heads=st.integers(1, 4),
        dim=st.integers(1, 6),
        size=maps,
        batch=st.integers(1, 4),
        precision=precisions,
        seed=seeds,
    )


@cases(5, 50)
def test_positions_far_outside(cases):
    """Keys that no query can reach through the table, and that no number of pixels describes."""

    def holds(size, key_size, table_size, distance, even, seed):
        torch.manual_seed(seed)
        query, key, value = [torch.randn(2, 4, *s, dtype=torch.float64) for s in (size, key_size, key_size)]
        position = (torch.rand(2, 2, *key_size, 2, dtype=torch.float64) * 2 - 1) * distance
        table = torch.randn(4, *table_size, dtype=torch.float64)
        inputs = [x.requires_grad_() for x in (query, key, value, table, position)]
        pairs = []
        for impl in ('tiled', 'naive'):
            axes = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in size]
            bias = TableBias(table, position, *axes, evenly_spaced=even)
            out = deformable_attention(query, key, value, 4, bias, impl=impl)
            pairs.append(([out.detach()], torch.autograd.grad(out.square().sum(), inputs)))
        assert_same(*pairs, 'float64')

    check(
        cases,
        holds,
        size=sizes(1, 60, 200),
        key_size=sizes(1, 12, 60),
        table_size=sizes(1, 60, 400),
        distance=st.sampled_from([1.0, 3.0, 100.0, 1e6, 1e15, 1e30]),
        even=st.booleans(),
        seed=seeds,
    )


@pytest.mark.parametrize('generation', ['dat', 'dat++'])
@cases(3, 25)
def test_extreme_inputs_under_autocast(cases, generation):
    """Constant images, black ones, activations of 1e4: no NaN, forwards or backwards."""

    def holds(arch, size, image, spread, seed):
        torch.manual_seed(seed)
        model = DAT(arch, img_size=64)
        make_random(model, spread)
        x = {
            'black': torch.zeros(2, 3, *size),
            'constant': torch.ones(2, 3, 1, 1).expand(2, 3, *size),
            'large': torch.randn(2, 3, *size) * 1e4,
            'large and constant': torch.full((2, 3, *size), -1e4),
        }[image]
        results(model, x, 'bfloat16')
        # Without the stem, whose norm would make ordinary activations of them.
        for stage, channels in zip(model.stages, arch['dims']):
            for block in stage.blocks:
                map_of_image = x[:, :1, :24, :24].expand(-1, channels, -1, -1)
                results(block.mixer, map_of_image, 'bfloat16')

    check(
        cases,
        holds,
        arch=archs(generation),
        size=sizes(MIN_SIZE, 200, 8000),
        image=st.sampled_from(['black', 'constant', 'large', 'large and constant']),
        spread=spreads,
        seed=seeds,
    )


@cases(5, 100)
def test_images_too_small_are_refused_with_their_size(cases, nano):
    model = DAT(nano, img_size=64)

    def holds(long, short, upright):
        height, width = (long, short) if upright else (short, long)
        with pytest.raises(ValueError, match=f'at least {MIN_SIZE}x{MIN_SIZE} pixels, got {height}x{width}: pad or'):
            model(torch.zeros(1, 3, height, width))

    check(cases, holds, long=st.integers(1, LARGEST), short=st.integers(1, MIN_SIZE - 1), upright=st.booleans())
