"""The parts of ``benchmarks/gpu.py`` that measure; each runs in a process of its own and returns what JSON can hold."""

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from mmdat import DAT
from mmdat.ops import TableBias, deformable_attention, neighborhood_attention, window_attention

Result = dict[str, Any]


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
        return 0.05 if self.quick else 0.5


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


def attempt(result: Result, measure: Callable[[], Result]) -> Result:
    """A measurement, or what kept it from being made; the others go on."""
    try:
        return {**result, **measure()}
    except Exception as error:  # whatever it is: it goes to the page
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {**result, 'error': str(error).split('\n')[0][:300]}


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

    def call(query: Tensor, key: Tensor, value: Tensor, table: Tensor, position: Tensor, impl: str) -> Tensor:
        return deformable_attention(query, key, value, heads, TableBias(table, position, *axes, True), impl=impl)

    maps = [map_of(channels, batch, *size, device) for size in (map_, keys, keys)]
    return Operator(name, call, [*maps, torch.randn(heads, side, side, device=device), position])


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


def dtypes(setup: Setup) -> list[torch.dtype]:
    return [torch.float32, torch.float16, torch.bfloat16]


def outputs(operator: Operator, inputs: Sequence[Tensor], impl: str) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = operator.call(*leaves, impl=impl)
    generator = torch.Generator(out.device).manual_seed(1)
    weight = torch.randn(out.shape, generator=generator, device=out.device, dtype=torch.float32)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]


def forward(operator: Operator, inputs: Sequence[Tensor], impl: str) -> Tensor:
    with torch.no_grad():
        return operator.call(*inputs, impl=impl)


def run_kernels(setup: Setup) -> list[Result]:
    """Errors of each form against the plain form in float32 (on the same rounded inputs), of the largest value."""
    results = []
    torch.manual_seed(torch.seed() % 2**31)  # fresh inputs
    for operator in operators(setup):
        for dtype in dtypes(setup):
            rounded = [x.to(dtype) for x in operator.inputs[: operator.maps]]
            inputs = [*rounded, *operator.inputs[operator.maps :]]
            plain = outputs(operator, [x.float() for x in inputs], 'naive')

            for impl in ('naive', 'tiled', 'triton'):
                case = dict(operator=operator.name, dtype=name_of(dtype), impl=impl)
                results.append(attempt(case, partial(errors, operator, inputs, impl, plain)))
    return results


def errors(operator: Operator, inputs: Sequence[Tensor], impl: str, plain: Sequence[Tensor]) -> Result:
    relative = [
        ((a.float() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item()
        for a, b in zip(outputs(operator, inputs, impl), plain)
    ]
    return dict(output=relative[0], gradients=max(relative[1:]))


def run_operators(setup: Setup) -> list[Result]:
    """Time and memory of each form, forward and with gradients."""
    results = []
    for operator in operators(setup):
        for dtype in (torch.float32, setup.amp):
            inputs = [*(x.to(dtype) for x in operator.inputs[: operator.maps]), *operator.inputs[operator.maps :]]
            for impl in ('naive', 'tiled', 'triton'):
                for mode, function in (('forward', forward), ('forward and backward', outputs)):
                    case = dict(operator=operator.name, dtype=name_of(dtype), impl=impl, mode=mode)
                    step = partial(function, operator, inputs, impl)
                    results.append(attempt(case, partial(measured, step, setup)))
    return results


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).split('.')[1]


# --- backbones -----------------------------------------------------------------------------


def swin_of_torchvision() -> nn.Module:
    from torchvision.models import swin_t

    return swin_t().features


def swin_of_mmdet() -> nn.Module:
    from mmdet.models import SwinTransformer

    return SwinTransformer(drop_path_rate=0.2)


def dat(arch: str, impl: str) -> nn.Module:
    return DAT(arch, drop_path_rate=0.2, attn_impl=impl)


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    'Swin-T (mmdet)': swin_of_mmdet,
    'Swin-T (torchvision)': swin_of_torchvision,
    **{
        f'{name}, {impl}': lambda arch=arch, impl=impl: dat(arch, impl)
        for name, arch in (('DAT-T', 'tiny'), ('DAT-T++', 'tiny++'))
        for impl in ('fast', 'naive', 'tiled', 'triton')
    },
    'DAT-T, fast, compiled': lambda: torch.compile(dat('tiny', 'fast')),
}


def step_of(model: nn.Module, x: Tensor, training: bool, amp: bool, setup: Setup) -> Callable[[], None]:
    """A forward pass or a training step without an optimizer."""
    precision = torch.autocast(setup.device, setup.amp) if amp else nullcontext()

    def step() -> None:
        with torch.set_grad_enabled(training), precision:
            outs = model(x)
        if training:
            outs = [outs] if isinstance(outs, Tensor) else outs
            model.zero_grad(set_to_none=True)
            sum(out.float().square().mean() for out in outs).backward()

    return step


def run_backbones(setup: Setup) -> list[Result]:
    """224x224 by images per second (AMP, channels_last), 800x1344 with batches of 1 and 2, with and without AMP."""
    results = []
    cases = [((64, 64), 2, True)] if setup.quick else [((224, 224), 256, True), ((224, 224), 64, True)]
    cases += [(setup.coco, batch, amp) for batch in (1, 2) for amp in (False, True)]
    for name, make in BACKBONES.items():
        if setup.quick and 'compiled' in name:
            continue
        model = None
        for size, batch, amp in cases[:2] if setup.quick else cases:
            for training in (False, True):

                def measure(size=size, batch=batch, amp=amp, training=training, name=name, make=make) -> Result:
                    nonlocal model
                    if model is None:
                        model = make().to(setup.device, memory_format=torch.channels_last)
                    model.train(training)
                    x = torch.randn(batch, 3, *size, device=setup.device).contiguous(memory_format=torch.channels_last)
                    found = measured(step_of(model, x, training, amp, setup), setup)
                    return {**found, 'images_per_second': batch / found['seconds']}

                case = dict(backbone=name, size=list(size), batch=batch, amp=amp, training=training)
                results.append(attempt(case, measure))
    return results


def run_batch(setup: Setup) -> list[Result]:
    """The largest batch that trains at 800x1344 under AMP, by trying."""
    results = []
    names = ['Swin-T (mmdet)', *(f'DAT-T, {impl}' for impl in ('fast', 'naive', 'tiled', 'triton'))]
    most = 2 if setup.quick else 256
    for name in names:

        def measure(name: str = name) -> Result:
            model = BACKBONES[name]().to(setup.device)
            model.train()

            def fits(batch: int) -> bool:
                try:
                    x = torch.randn(batch, 3, *setup.coco, device=setup.device)
                    step_of(model, x, True, True, setup)()
                    return True
                except torch.cuda.OutOfMemoryError:
                    return False
                finally:
                    gc.collect()
                    torch.cuda.empty_cache()

            good, bad = 0, most + 1
            while bad - good > 1:
                batch = min(2 * good or 1, most) if bad > most else (good + bad) // 2
                good, bad = (batch, bad) if fits(batch) else (good, batch)
            return dict(batch=good, limit=good == most)

        results.append(attempt(dict(backbone=name, size=list(setup.coco)), measure))
    return results
