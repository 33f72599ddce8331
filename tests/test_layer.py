"""DeformableAttention by itself: one, two and three axes, a second map, tokens, weights of one official layer."""

import math

import pytest
import torch
from largest_tensor import LargestTensor
from paths import DATA

from mmdat import DAT, DeformableAttention, DeformableTokenAttention, record_sampling
from mmdat.ops import budget
from mmdat.visualization import record_attention

pytestmark = pytest.mark.usefixtures('on_device')

SIZES = {1: (23,), 2: (7, 6), 3: (3, 5, 4)}
OTHER_SIZES = {1: (9,), 2: (5, 9), 3: (4, 2, 6)}
STRIDES = {1: (2,), 2: (1, 2), 3: (1, 2, 2)}
BIASES = ('table', 'fixed', 'dwconv', 'log', 'none')
RECENT = hasattr(torch.library, 'opcheck')  # torch 2.4 or later
dims_ = pytest.mark.parametrize('dims', [1, 2, 3])
generations = pytest.mark.parametrize('convention, offset_range', [('dat', 2.0), ('dat++', None)])


def make(dims, **options):
    """A layer whose points move, in double precision."""
    options = {**dict(num_heads=4, groups=2, kernel_size=3, map_size=(4, 3, 5)[:dims], stride=STRIDES[dims]), **options}
    layer = DeformableAttention(8, dims=dims, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    return layer


def maps(dims, channels=6):
    return [torch.randn(2, c, *size).double() for c, size in ((8, SIZES[dims]), (channels, OTHER_SIZES[dims]))]


def outputs_and_gradients(layer, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = layer(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), device='cpu').to(out)
    return [out, *torch.autograd.grad(out, [*inputs, *layer.parameters()], weight)]


def small_budget(monkeypatch, size):
    """Let the fast forms hold that many bytes at a time, on any device."""
    for device in ('cpu', 'other'):
        monkeypatch.setitem(budget.CHUNK_BYTES, device, size)
        monkeypatch.setitem(budget.PLAIN_BYTES, device, 0)


def assert_close(found, expected, tolerance=1e-10):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape and a.isfinite().all()
        assert (a - b).abs().max() <= tolerance * max(b.abs().max().item(), 1e-3)


def read(x, position):
    """Values of ``(C, *size)`` at ``(N, axes)``: products of the hat weights of all axes."""
    weights = torch.ones(len(position), 1).to(x)
    for axis, side in enumerate(x.shape[1:]):
        pixel = (position[:, axis] + 1) / 2 * (side - 1)
        hat = (1 - (pixel[:, None] - torch.arange(side).to(x)).abs()).clamp(min=0)
        weights = (weights[:, :, None] * hat[:, None]).flatten(1)
    return weights @ x.flatten(1).t()


def specification(layer, x, context):
    """The layer written out for one image and one head after the other, from the paper."""
    outs = []
    linear = lambda proj, x: proj(x.flatten(2).transpose(1, 2))  # noqa: E731  (B, N, C)
    query = linear(layer.proj_q, x)
    position = layer.offset_net(query.transpose(1, 2).reshape(x.shape)).position.flatten(2, -2)
    divide = {'dat': lambda i, n: (i + 0.5) / n * 2 - 1, 'dat++': lambda i, n: i / max(n - 1, 1) * 2 - 1}
    axes = [divide[layer.convention](torch.arange(n).to(x), n) for n in x.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1).flatten(0, -2)
    for image in range(len(x)):
        parts = context[image].chunk(layer.groups)
        sampled = torch.cat([read(part, position[image, g]) for g, part in enumerate(parts)], 1)
        key, value = layer.proj_k(sampled), layer.proj_v(sampled)
        heads = []
        for head, (q, k, v) in enumerate(zip(*(t.chunk(layer.num_heads, 1) for t in (query[image], key, value)))):
            points = position[image, head // (layer.num_heads // layer.groups)]
            displacement = ((grid[:, None] - points) / 2).flatten(0, 1)
            bias = read(layer.relative_position_bias_table[head, None], displacement).view(len(q), len(k))
            heads.append((q @ k.t() / q.shape[1] ** 0.5 + bias).softmax(-1) @ v)
        outs.append(layer.proj_out(torch.cat(heads, 1)))
    return torch.stack(outs).transpose(1, 2).reshape(x.shape)


@dims_
@generations
def test_the_layer_is_what_the_paper_says(dims, convention, offset_range):
    layer = make(dims, convention=convention, offset_range=offset_range, context_channels=6)
    x, context = maps(dims)
    for impl in ('naive', 'fast', 'tiled'):
        layer.impl = impl
        assert_close([layer(x, context)], [specification(layer, x, context)])


@dims_
@generations
@pytest.mark.parametrize('position_bias', BIASES)
def test_fast_and_naive_form_are_equal(dims, convention, offset_range, position_bias, monkeypatch):
    """With gradients to both maps and all weights; the fast form cuts the work into many parts."""
    options = dict(convention=convention, offset_range=offset_range, position_bias=position_bias, context_channels=6)
    layer, inputs = make(dims, **options), maps(dims)
    small_budget(monkeypatch, 2000)
    fast = outputs_and_gradients(layer, *inputs)
    layer.impl = 'naive'
    assert_close(fast, outputs_and_gradients(layer, *inputs))


def lift(layer, dims, axis):
    """The same layer for one axis more, of side one."""
    size, kernel, stride = (3, 5), layer.offset_net[0].kernel_size, layer.stride
    insert = lambda values, one: (*values[:axis], one, *values[axis:])  # noqa: E731
    lifted = make(
        dims + 1,
        map_size=insert(size[:dims], 1),
        kernel_size=insert(kernel, 1),
        stride=insert(stride, 1),
        convention=layer.convention,
        offset_range=layer.offset_net.offset_range,
    )
    own = lifted.state_dict()
    for name, value in layer.state_dict().items():
        if name == 'offset_net.3.weight':  # how far points move along the new axis is of no consequence
            value = torch.cat([value[:axis], own[name][:1], value[axis:]])
        own[name] = value.reshape(own[name].shape)
    lifted.load_state_dict(own)
    return lifted


@generations
@pytest.mark.parametrize('dims, axis', [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
@pytest.mark.parametrize('impl', ['fast', 'naive'])
def test_signals_and_maps_are_maps_and_volumes_of_side_one(dims, axis, impl, convention, offset_range):
    layer = make(dims, map_size=(3, 5)[:dims], convention=convention, offset_range=offset_range, impl=impl)
    x = torch.randn(2, 8, *SIZES[dims]).double()
    lifted = lift(layer, dims, axis)
    lifted.impl = impl
    assert_close([lifted(x.unsqueeze(2 + axis)).squeeze(2 + axis)], [layer(x)])


@dims_
@pytest.mark.parametrize('use_offsets', [True, False])
def test_a_map_that_is_its_own_context_changes_nothing(dims, use_offsets):
    layer, (x, _) = make(dims, use_offsets=use_offsets), maps(dims)
    assert torch.equal(layer(x), layer(x, x))
    assert torch.equal(layer(x), layer(x=x, context=x.clone()))


@dims_
def test_positions_mean_the_same_at_every_size_of_the_context(dims):
    """A context that rises evenly is the same at all sizes, as its first and last cells lie on those of the queries."""

    def ramp(size):
        axes = [torch.linspace(-1, 1, side, dtype=torch.float64) for side in size]
        grid = torch.stack(torch.meshgrid(*axes, indexing='ij'))  # (axes, *size)
        return torch.einsum('ca,a...->c...', slopes, grid)[None]

    slopes = torch.randn(6, dims).double()
    layer, x = make(dims, context_channels=6), torch.randn(1, 8, *SIZES[dims]).double()
    small, large = (layer(x, ramp(size)) for size in (OTHER_SIZES[dims], (31, 12, 9)[:dims]))
    assert_close([small], [large])
    assert (small - layer(x, ramp((2, 2, 2)[:dims]) * 2)).abs().max() > 1e-3


@dims_
@pytest.mark.parametrize('channels', [1, 3, 8, 30, 48, 64, 100])
def test_defaults_serve_any_number_of_channels(channels, dims):
    layer = DeformableAttention(channels, dims=dims)
    for size in (SIZES[dims], (1,) * dims):
        x = torch.randn(1, channels, *size)
        out = layer(x)
        assert out.shape == x.shape and out.isfinite().all()


def test_defaults_are_those_of_the_papers():
    layer = DeformableAttention(256)
    assert (layer.num_heads, layer.groups, layer.stride, layer.convention) == (8, 4, (1, 1), 'dat++')


@dims_
@pytest.mark.parametrize('use_offsets', [True, False])
def test_recorded_points_have_the_axes_and_strides_of_the_layer(dims, use_offsets):
    layer, (x, context) = make(dims, use_offsets=use_offsets, context_channels=6), maps(dims)
    with record_sampling(layer) as points:
        layer(x, context=context)
    (record,) = points['']
    if use_offsets:
        size = [-(-side // step) for side, step in zip(SIZES[dims], STRIDES[dims])]
    else:  # the cells of the context, whole ones
        size = [side // step for side, step in zip(OTHER_SIZES[dims], STRIDES[dims])]
    assert record.position.shape == (2, 2 if use_offsets else 1, *size, dims)
    assert record.reference.shape == (*size, dims)


@dims_
@pytest.mark.parametrize('position_bias', [*BIASES, 'pooled'])
def test_recorded_attention_is_what_the_layer_computes_with(dims, position_bias):
    """Weights times values, through the output projection, are what the layer returned."""
    change = dict(use_offsets=False) if position_bias == 'pooled' else dict(position_bias=position_bias)
    layer, (x, context) = make(dims, context_channels=6, **change), maps(dims)
    values = []
    handle = layer.proj_v.register_forward_hook(lambda module, args, out: values.append(out.movedim(-1, 1)))
    with torch.no_grad(), record_attention(layer) as layers:
        out = layer(x, context)
    handle.remove()
    (attention,) = layers['']
    with torch.no_grad():
        weights = torch.cat([attention.weights(*rows) for rows in attention.chunks(chunk_bytes=1)], 2)
        mixed = (values[0].flatten(2).unflatten(1, (4, -1)) @ weights.transpose(2, 3)).flatten(1, 2).view_as(x)
        if position_bias == 'dwconv':
            mixed = mixed + layer.bias_conv(attention.query)
        assert_close([layer.proj_out(mixed.movedim(1, -1)).movedim(-1, 1)], [out])
        cell = tuple(side // 2 for side in SIZES[dims])
        per_head = weights.unflatten(2, SIZES[dims])[(slice(None), slice(None), *cell)]
        per_group = per_head.unflatten(1, (attention.points.position.shape[1], -1)).sum(2) / 4
        assert torch.allclose(attention.of_query(*cell).flatten(2), per_group)
    received = attention.received_map()
    assert received.shape == (2, *OTHER_SIZES[dims])
    assert (received.flatten(1).sum(1) <= 4 * math.prod(SIZES[dims]) + 1e-6).all()


@pytest.mark.skipif(not RECENT, reason='autocast of torch 2.1 on a CPU knows fewer operations')
@dims_
def test_autocast_keeps_positions_in_single_precision(dims, device):
    layer = make(dims, context_channels=6).float()
    x, context = (map_.float() for map_ in maps(dims))
    expected = layer(x, context)
    with torch.autocast(device.type, dtype=torch.bfloat16), record_sampling(layer) as points:
        out = layer(x, context)
    assert out.dtype == torch.bfloat16
    assert points[''][0].position.dtype == torch.float32
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.skipif(not RECENT, reason='torch.compile needs torch 2.4 or newer')
@pytest.mark.slow
@dims_
def test_compiled_and_exported(dims):
    """Without graph breaks, the same outputs and gradients."""
    layer, inputs = make(dims, context_channels=6), maps(dims)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
    assert_close(outputs_and_gradients(compiled, *inputs), outputs_and_gradients(layer, *inputs))
    exported = torch.export.export(layer.eval(), tuple(inputs)).module()
    assert_close([exported(*inputs)], [layer(*inputs)])


@dims_
def test_memory_is_linear_in_the_size(dims, monkeypatch):
    """No tensor, made or kept for the backward pass, grows with queries times keys."""
    numbers = 2**17
    small_budget(monkeypatch, 4 * numbers)
    layer = make(dims, stride=1).float()
    x = torch.randn(1, 8, *{1: (1024,), 2: (32, 32), 3: (4, 16, 16)}[dims], requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with LargestTensor() as made, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x).sum().backward()
    pixels = math.prod(x.shape[2:])
    assert max(made.numel, *kept) <= 2 * numbers
    assert layer.num_heads * pixels**2 >= 32 * numbers


def test_weights_of_one_official_layer():
    """As they are, as a part of a larger network, and for another size of map."""
    for path, stage in ((DATA / 'dat_cls.pt', 2), (DATA / 'datpp_cls_112.pt', 1)):
        case = torch.load(path, weights_only=True)
        arch = {k: case['arch'][k] for k in ('generation', 'dims', 'depths', 'heads', 'groups', 'stage_spec')}
        model = DAT(arch, img_size=case['arch'].get('img_size', 224), out_indices=3)
        model.load_state_dict({key: value.float() for key, value in case['state_dict'].items()})
        block = arch['stage_spec'][stage].index('D')
        mixer = model.stages[stage].blocks[block].mixer
        prefix = f'stages.{stage}.attns.{block}.'
        official = {k[len(prefix) :]: v.float() for k, v in case['state_dict'].items() if k.startswith(prefix)}
        assert 'conv_offset.1.norm.weight' in official and official['proj_q.weight'].dim() == 4

        options = dict(
            num_heads=mixer.num_heads,
            groups=mixer.groups,
            kernel_size=mixer.offset_net[0].kernel_size,
            stride=mixer.stride,
            convention=mixer.convention,
            offset_range=mixer.offset_net.offset_range,
        )
        size = [(side + 1) // 2 for side in official['rpe_table'].shape[1:]]
        layer = DeformableAttention(mixer.in_channels, map_size=size, **options)
        layer.load_state_dict(official)
        x = torch.randn(2, mixer.in_channels, 9, 11)
        assert torch.equal(layer(x), mixer(x))
        assert set(layer.state_dict()) == set(mixer.state_dict())

        network = torch.nn.Sequential(torch.nn.Identity(), DeformableAttention(mixer.in_channels, **options))
        network.load_state_dict({f'1.{key}': value for key, value in official.items()})
        assert network[1].relative_position_bias_table.shape[1:] == (27, 27)
        assert torch.equal(network[1].proj_v.weight, mixer.proj_v.weight)


@pytest.mark.parametrize('prefix', [0, 1, 5])
def test_tokens_are_the_cells_of_a_map(prefix):
    layer = DeformableTokenAttention(32, prefix, num_heads=2)
    tokens = torch.randn(2, prefix + 42, 32)
    out = layer(tokens, (6, 7))
    assert not out[:, :prefix].any()
    expected = layer.attention(tokens[:, prefix:].transpose(1, 2).reshape(2, 32, 6, 7))
    assert torch.equal(out[:, prefix:], expected.flatten(2).transpose(1, 2))
    assert torch.equal(layer(tokens[:, : prefix + 36]), layer(tokens[:, : prefix + 36], (6, 6)))
    clip = DeformableTokenAttention(32, prefix, dims=3, map_size=(2, 3, 7))
    assert clip(tokens, (2, 3, 7)).shape == tokens.shape


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: DeformableAttention(8, dims=4), 'dims must be 1, 2 or 3, got 4'),
        (
            lambda: DeformableAttention(8, dims=3, stride=(1, 2)),
            r'stride must be a number or 3 numbers, .* got \(1, 2\)',
        ),
        (lambda: DeformableAttention(8, dims=1, map_size=(9, 9)), 'map_size must be a number or 1 numbers'),
        (lambda: DeformableAttention(8, 4, 2, kernel_size=(3, 4)), r'kernel_size=\(3, 4\) is even'),
        (lambda: DeformableAttention(8, 4, 2, context_channels=5), 'groups=2 does not divide context_channels=5'),
        (lambda: DeformableAttention(8, dims=3, sampler='mmcv'), "sampler='mmcv' is for dims=2, got dims=3"),
        (
            lambda: DeformableAttention(8)(torch.ones(2, 49, 8)),
            r'x must be a map \(B, C, H, W\), got shape \(2, 49, 8\)',
        ),
        (lambda: DeformableAttention(8)(torch.ones(2, 7, 7, 8)), r'x must have 8 channels, got shape \(2, 7, 7, 8\)'),
        (lambda: DeformableAttention(8, dims=1)(torch.ones(2, 8, 7, 7)), r'x must be a signal \(B, C, L\)'),
        (
            lambda: DeformableAttention(8)(torch.ones(1, 8, 4, 4), torch.ones(1, 6, 4, 4)),
            'context must have 8 channels',
        ),
        (
            lambda: DeformableAttention(8, context_channels=6)(torch.ones(1, 8, 4, 4)),
            'context must have 6 channels, got shape',
        ),
        (
            lambda: DeformableAttention(8)(torch.ones(2, 8, 4, 4), torch.ones(3, 8, 4, 4)),
            'x has a batch of 2, context one of 3',
        ),
        (lambda: DeformableTokenAttention(8, 1)(torch.ones(2, 49, 8)), '48 tokens behind 1 in front do not fill a map'),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert '\n' not in str(error.value)
