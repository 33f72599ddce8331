"""The parts of ``benchmarks/gpu.py`` that measure: cases, each with a function that measures it.

What functions return can be written as JSON.
"""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from mmdat import DAT
from mmdat.ops import TableBias, deformable_attention, neighborhood_attention, window_attention

Result = dict[str, Any]
#: What a case is, and what measures it.
Case = tuple[Result, Callable[[], Result]]


class Setup(NamedTuple):
    """Where and how much to measure.

    Attributes:
        device: ``'cuda'`` or ``'cpu'``.
        quick: Whether small sizes do, to see that everything runs.
    """

    device: str
    quick: bool

    @property
    def amp(self) -> torch.dtype:
        return torch.float16 if self.device == 'cuda' else torch.bfloat16

    @property
    def coco(self) -> tuple[int, int]:
        return (64, 96) if self.quick else (800, 1344)

    @property
    def seconds(self) -> float:
        """How long to repeat a measurement."""
        return 0.02 if self.quick else 0.15


def measured(step: Callable[[], Any], setup: Setup) -> Result:
    """Median and spread of the time of a step in seconds, and peak memory beyond what was held before in bytes."""
    step()  # compiles kernels, fills caches
    gc.collect()
    cuda = setup.device == 'cuda'
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times: list[float] = []
    while sum(times) < setup.seconds or len(times) < 3:
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    memory = torch.cuda.max_memory_allocated() - before if cuda else None
    return dict(
        seconds=statistics.median(times), fastest=min(times), slowest=max(times), runs=len(times), memory=memory
    )


def attempt(case: Result, measure: Callable[[], Result]) -> Result:
    """A measurement, or what kept it from being made; the others go on."""
    try:
        return {**case, **measure()}
    except Exception as error:  # whatever it is: it goes to the page
        # Where kernels cannot run at all, or there is no other library to compare with, that is no failure.
        known = isinstance(error, ImportError) or "impl='triton' needs" in str(error)
        return {**case, 'error': str(error).split('\n')[0][:300], 'ok': known}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# --- operators -----------------------------------------------------------------------------


class Operator(NamedTuple):
    """An operator as a layer of a published model calls it.

    Attributes:
        name: What it is.
        call: From tensors and ``impl`` to the output.
        inputs: Maps in a layout like that of the network, then a table (and positions), in float32.
        maps: How many of the inputs are maps.
    """

    name: str
    call: Callable[..., Tensor]
    inputs: list[Tensor]
    maps: int = 3


def map_of(channels: int, batch: int, height: int, width: int, device: str) -> Tensor:
    x = torch.randn(batch, channels, height, width, device=device)
    return x.contiguous(memory_format=torch.channels_last)


def deformable(name: str, batch: int, shape: Sequence[int], map_: Sequence[int], keys: Sequence[int], setup: Setup):
    """Of ``shape``: channels, heads, groups, side of the table."""
    channels, heads, groups, side = shape
    device = setup.device
    axes = [torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in map_]
    points = [torch.linspace(-1, 1, n, device=device) if n > 1 else torch.zeros(1, device=device) for n in keys]
    position = torch.stack(torch.meshgrid(*points, indexing='ij'), -1)
    position = position + 0.1 * torch.randn(batch, groups, *keys, 2, device=device)
    move_off_entries(position, axes, side)

    def call(query: Tensor, key: Tensor, value: Tensor, table: Tensor, position: Tensor, impl: str) -> Tensor:
        return deformable_attention(query, key, value, heads, TableBias(table, position, *axes, True), impl=impl)

    maps = [map_of(channels, batch, *size, device) for size in (map_, keys, keys)]
    return Operator(name, call, [*maps, torch.randn(heads, side, side, device=device), position])


def move_off_entries(position: Tensor, axes: Sequence[Tensor], side: int) -> None:
    """Move positions, in place, until no query meets one at an entry of the table.

    There the gradient of the position jumps, and which side is taken hangs on the last bit.
    """
    for axis, queries in enumerate(axes):
        coordinate = position[..., axis].flatten()
        for _ in range(1000):
            cells = (queries[:, None] - coordinate) * (side - 1) / 4
            near = ((cells - cells.round()).abs() < 1e-4).any(0)
            if not near.any():
                break
            coordinate = torch.where(near, coordinate + 0.01 * torch.randn_like(coordinate), coordinate)
        position[..., axis] = coordinate.view(position.shape[:-1])


def operators(setup: Setup) -> Iterator[Operator]:
    """Layers of the published models at 800x1344 and at 224x224."""
    height, width = setup.coco
    device = setup.device
    at = lambda stride: (max(height // stride, 1), max(width // stride, 1))  # noqa: E731
    dat, datpp = (384, 12, 3, 27), (64, 2, 1, 111)
    yield deformable('deformable attention, DAT-T stage 3, batch 2', 2, dat, at(16), at(16), setup)
    yield deformable('deformable attention, DAT-T++ stage 1, batch 2', 2, datpp, at(4), at(32), setup)
    if not setup.quick:
        yield deformable('deformable attention, DAT-T stage 3, 224, batch 128', 128, dat, (14, 14), (14, 14), setup)
    sides = [max(n, 7) for n in at(4)]
    yield Operator(
        'neighbourhood attention, DAT-T++ stage 1, batch 2',
        lambda *args, impl: neighborhood_attention(*args, 2, 7, impl=impl),
        [*(map_of(64, 2, *sides, device) for _ in range(3)), torch.randn(2, 13, 13, device=device)],
    )
    sides = [-(-n // 7) * 7 for n in at(4)]
    yield Operator(
        'shifted window attention, DAT-T stage 1, batch 2',
        lambda *args, impl: window_attention(*args, 3, 7, 3, impl=impl),
        [*(map_of(96, 2, *sides, device) for _ in range(3)), torch.randn(169, 3, device=device)],
    )


#: Errors beyond which a form is wrong, of the largest value.
BOUNDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
FORMS = 'naive', 'tiled', 'triton'


def rounded(operator: Operator, dtype: torch.dtype) -> list[Tensor]:
    """The inputs with maps of a dtype."""
    return [*(x.to(dtype) for x in operator.inputs[: operator.maps]), *operator.inputs[operator.maps :]]


def outputs(operator: Operator, inputs: Sequence[Tensor], impl: str) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = operator.call(*leaves, impl=impl)
    generator = torch.Generator(out.device).manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]


def forward(operator: Operator, inputs: Sequence[Tensor], impl: str) -> Tensor:
    with torch.no_grad():
        return operator.call(*inputs, impl=impl)


def kernels(setup: Setup) -> Iterator[Case]:
    """Errors of each form."""
    torch.manual_seed(torch.seed() % 2**31)  # fresh inputs
    for operator in operators(setup):
        for dtype in BOUNDS:
            inputs = rounded(operator, dtype)
            plain = cache(partial(outputs, operator, [x.float() for x in inputs], 'naive'))
            for impl in FORMS[1:] if dtype == torch.float32 else FORMS:
                case = dict(operator=operator.name, dtype=name_of(dtype), impl=impl)
                yield case, partial(errors, operator, inputs, impl, plain)


def errors(operator: Operator, inputs: Sequence[Tensor], impl: str, plain: Callable[[], list[Tensor]]) -> Result:
    """Against the plain form in float32, on the same rounded inputs."""
    output, *gradients = [
        ((a.float() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
        for a, b in zip(outputs(operator, inputs, impl), plain())
    ]
    # Half precision of the plain form itself is judged by nobody.
    right = impl == 'naive' or max(output, *gradients) <= BOUNDS[inputs[0].dtype]
    return dict(output=output, gradients=max(gradients), ok=right)


def operator_times(setup: Setup) -> Iterator[Case]:
    """Time and memory of each form, forward and with gradients."""
    for operator in operators(setup):
        for dtype in (setup.amp, torch.float32):
            for impl in FORMS:
                for mode, function in (('forward', forward), ('forward and backward', outputs)):
                    case = dict(operator=operator.name, dtype=name_of(dtype), impl=impl, mode=mode)
                    yield case, partial(measured, partial(function, operator, rounded(operator, dtype), impl), setup)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).split('.')[1]


# --- backbones -----------------------------------------------------------------------------

#: With small sizes: all mixers of a generation in few channels.
SMALL = {
    'tiny': dict(generation='dat', groups=(-1, -1, 2, 4), stage_spec=('L', 'S', 'LD', 'SD')),
    'tiny++': dict(generation='dat++', groups=(1, 1, 2, 4), stage_spec=('N', 'D', 'ND', 'DD')),
}
SHAPE = dict(dims=(16, 32, 64, 128), depths=(1, 1, 2, 2), heads=(1, 2, 4, 8))


def swin_of_torchvision(setup: Setup) -> nn.Module:
    from torchvision.models.swin_transformer import SwinTransformer, swin_t

    if not setup.quick:
        return swin_t().features
    return SwinTransformer([4, 4], 24, [1, 1, 1, 1], [1, 2, 4, 8], [7, 7]).features


def swin_of_mmdet(setup: Setup) -> nn.Module:
    from mmdet.models import SwinTransformer

    small = dict(embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)) if setup.quick else {}
    return SwinTransformer(drop_path_rate=0.2, **small)


def dat(arch: str, impl: str, setup: Setup) -> nn.Module:
    return DAT({**SMALL[arch], **SHAPE} if setup.quick else arch, drop_path_rate=0.2, attn_impl=impl)


def compiled(arch: str, setup: Setup) -> nn.Module:
    # With small sizes, by what needs no compiler.
    return torch.compile(dat(arch, 'fast', setup), backend='aot_eager' if setup.quick else 'inductor')


BACKBONES: dict[str, Callable[[Setup], nn.Module]] = {
    'Swin-T (mmdet)': swin_of_mmdet,
    'Swin-T (torchvision)': swin_of_torchvision,
    **{
        f'{name}, {impl}': partial(dat, arch, impl)
        for impl in ('fast', 'tiled', 'naive')
        for name, arch in (('DAT-T', 'tiny'), ('DAT-T++', 'tiny++'))
    },
}
COMPILED = {
    f'{name}, fast, compiled': partial(compiled, arch) for name, arch in (('DAT-T', 'tiny'), ('DAT-T++', 'tiny++'))
}


def backbone_times(setup: Setup) -> Iterator[Case]:
    """224x224 with batches of 256 or what fits, 800x1344 with batches of 1 and 2, with and without AMP."""
    small = (64, 64) if setup.quick else (224, 224)
    settings = [(small, 4 if setup.quick else 256, True), *((setup.coco, batch, True) for batch in (2, 1))]
    settings += [(setup.coco, batch, False) for batch in (2, 1)]
    if setup.quick:  # one of each kind
        settings = [settings[i] for i in (0, 1, 4)]
    cases = [
        (name, size, batch, amp)
        for size, batch, amp in settings
        for name in BACKBONES
        # Forms that nobody would take, where it matters most.
        if chooses(name) or (amp and batch > 1)
    ]
    # Compiling takes most of a minute.
    cases += [(name, *setting) for setting in settings[:2] for name in COMPILED]
    for name, size, batch, amp in cases:
        for mode in ('forward', 'training step'):
            case = dict(
                backbone=name,
                size='x'.join(map(str, size)),
                mode=mode,
                precision=f'AMP, {name_of(setup.amp)}' if amp else 'float32',
            )
            yield {**case, 'batch': batch}, partial(time_of, name, size, batch, amp, mode, setup)


def chooses(name: str) -> bool:
    """Whether a backbone is as users have it: no form is asked for."""
    return not name.endswith(('tiled', 'naive'))


def time_of(name: str, size: Sequence[int], batch: int, amp: bool, mode: str, setup: Setup) -> Result:
    """Of a batch, or of the half of it (and so on) that fits."""
    step = step_of({**BACKBONES, **COMPILED}[name](setup), mode, amp, setup)
    while True:
        try:
            found = measured(partial(step, images(batch, size, setup)), setup)
            return {**found, 'batch': batch, 'images_per_second': batch / found['seconds']}
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
        gc.collect()
        torch.cuda.empty_cache()
        batch //= 2


def images(batch: int, size: Sequence[int], setup: Setup) -> Tensor:
    return torch.randn(batch, 3, *size, device=setup.device).contiguous(memory_format=torch.channels_last)


def step_of(model: nn.Module, mode: str, amp: bool, setup: Setup) -> Callable[[Tensor], None]:
    """A forward pass, or one with loss, gradients and an update of the weights; in memory format channels_last."""
    training = mode == 'training step'
    model.to(setup.device, memory_format=torch.channels_last)
    model.train(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step(x: Tensor) -> None:
        precision = torch.autocast(setup.device, setup.amp) if amp else nullcontext()
        with torch.set_grad_enabled(training), precision:
            outs = model(x)
        if training:
            outs = [outs] if isinstance(outs, Tensor) else outs
            sum(out.float().square().mean() for out in outs).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def batches(setup: Setup) -> Iterator[Case]:
    """The largest batch that trains at 800x1344 under AMP."""
    for name in ('DAT-T, fast', 'DAT-T++, fast', 'Swin-T (mmdet)', 'DAT-T, naive'):
        yield dict(backbone=name), partial(largest_batch, name, setup)


def largest_batch(name: str, setup: Setup) -> Result:
    """By trying, to an eighth of it."""
    step = step_of(BACKBONES[name](setup), 'training step', True, setup)
    most = 2 if setup.quick else 256

    def fits(batch: int) -> bool:
        try:
            step(images(batch, setup.coco, setup))
            return True
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    good, bad = 0, most + 1
    while bad - good > max(good // 8, 1):
        batch = min(2 * good or 1, most) if bad > most else (good + bad) // 2
        good, bad = (batch, bad) if fits(batch) else (good, batch)
    return dict(batch=good, limit=good == most)


#: By part.
CASES: dict[str, Callable[[Setup], Iterator[Case]]] = dict(
    kernels=kernels, operators=operator_times, backbones=backbone_times, batch=batches
)
