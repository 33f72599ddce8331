"""Time and memory of the operators and backbones.

Every measurement runs in a process of its own, variants take turns, and the table gives medians with
their spread (lowest to highest). On a CPU the peak memory is that of the process beyond what it held before the
first call; on a GPU that of PyTorch's allocator.

    python benchmarks/benchmark.py ops backbones scaling --repeats 3 --out work_dirs/benchmark
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

COCO = (800, 1344)
#: A first run that is shorter only warms up; in a longer one, in seconds, that makes no difference, so it counts alone.
WARM_UP = 30


class Case(NamedTuple):
    """Something to measure; ``variants`` are compared with the first of them."""

    name: str
    variants: tuple[str, ...]
    modes: tuple[str, ...]
    size: tuple[int, int] = COCO


BACKBONES = ('Swin-T', 'DAT-T', 'DAT-T++')
SUITES: dict[str, list[Case]] = {
    'ops': [
        Case('deformable attention, DAT-T stage 3', ('naive', 'fast'), ('forward', 'training')),
        Case('deformable attention, DAT-T++ stage 1', ('naive', 'fast'), ('forward', 'training')),
        Case('neighbourhood attention, DAT-T++ stage 1', ('naive', 'fast'), ('forward', 'training')),
        Case('shifted window attention, DAT-T stage 1', ('naive', 'fast'), ('forward', 'training')),
    ],
    'backbones': [
        Case('backbone', BACKBONES, ('forward', 'training')),
        Case('compiled', ('DAT-T', 'DAT-T compiled'), ('forward',)),
        Case('recomputed blocks', ('Swin-T', 'DAT-T', 'DAT-T with_cp'), ('training',), (2048, 2048)),
    ],
    'naive-backbones': [
        Case('backbone', ('DAT-T naive', 'DAT-T', 'DAT-T++ naive', 'DAT-T++'), ('forward', 'training'))
    ],
    'scaling': [
        Case(f'{side}x{side}', BACKBONES, ('training',), (side, side)) for side in (512, 768, 1024, 1448, 2048)
    ],
}


def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(measure(**json.loads(args.measure))))
        return
    machine = describe_machine(args.device, args.threads)
    print(json.dumps(machine, indent=2), flush=True)
    results = []
    for suite in args.suites:
        for case in SUITES[suite]:
            if args.only in case.name:
                results += [dict(suite=suite, **result) for result in run_case(case, args)]
                if args.out:  # after each case: some take long, and may be interrupted
                    write(results, machine, Path(args.out))
    print('\n' + table(results, machine))


def write(results: Sequence[dict[str, Any]], machine: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / 'benchmark.json').write_text(json.dumps(dict(machine=machine, results=results), indent=1) + '\n')
    scaling = [result for result in results if result['suite'] == 'scaling']
    if len({tuple(result['size']) for result in scaling}) > 1:
        plot_scaling(scaling, out / 'scaling.png')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'suites', nargs='*', metavar='suite', help=f'what to measure: {", ".join(SUITES)} (default: ops backbones)'
    )
    parser.add_argument('--only', default='', help='measure cases whose name contains this')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--threads', type=int, default=os.cpu_count(), help='threads of the CPU (default: all)')
    parser.add_argument('--repeats', type=int, default=3, help='processes per variant, in turns')
    parser.add_argument(
        '--runs',
        type=int,
        default=3,
        help=f'timed runs per process after one to warm up, which counts alone if over {WARM_UP} s',
    )
    parser.add_argument(
        '--clock',
        default='wall',
        choices=['wall', 'processor'],
        help='processor: time of the processor spent, for a machine that has other work (with '
        '--threads 1; more threads also wait)',
    )
    parser.add_argument('--out', help='directory for benchmark.json and scaling.png')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.suites = args.suites or ['ops', 'backbones']
    for suite in args.suites:
        if suite not in SUITES:
            parser.error(f"there is no suite '{suite}': choose from {', '.join(SUITES)}")
    return args


def run_case(case: Case, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all variants and modes of a case, in turns."""
    samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.repeats):
        for mode in case.modes:
            for variant in case.variants:
                job = dict(
                    name=case.name,
                    variant=variant,
                    mode=mode,
                    size=case.size,
                    device=args.device,
                    threads=args.threads,
                    runs=args.runs,
                    clock=args.clock,
                )
                command = [sys.executable, __file__, '--measure', json.dumps(job)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                sample = json.loads(done.stdout.splitlines()[-1])
                print(
                    f'{case.name}; {variant}; {mode}:',
                    ', '.join(f'{s:.2f}' for s in sample['seconds']),
                    's,',
                    f'{sample["memory"] / 2**30:.2f} GiB',
                    flush=True,
                )
                samples.setdefault((mode, variant), []).append(sample)
    results = []
    for (mode, variant), some in samples.items():
        seconds = [s for sample in some for s in sample['seconds']]
        results.append(
            dict(
                case=case.name,
                variant=variant,
                mode=mode,
                size=case.size,
                seconds=statistics.median(seconds),
                fastest=min(seconds),
                slowest=max(seconds),
                flops=some[0]['flops'],
                bytes=some[0]['bytes'],
                memory=statistics.median(sample['memory'] for sample in some),
            )
        )
    for result in results:
        first = next(r for r in results if r['mode'] == result['mode'])
        result['relative_seconds'] = result['seconds'] / first['seconds']
        result['relative_memory'] = result['memory'] / first['memory']
    return results


def measure(
    name: str, variant: str, mode: str, size: Sequence[int], device: str, threads: int, runs: int, clock: str
) -> dict[str, Any]:
    """Time and memory of one variant, in this process."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = make_step(name, variant, mode, size, device)
    memory = Memory(device)
    seconds = [timed(step, device, clock)]
    if seconds[0] < WARM_UP or 'compiled' in variant:  # whose first run compiles
        seconds = [timed(step, device, clock) for _ in range(runs)]
    peak = memory.peak()
    # The backward pass takes each product twice; what is computed again for it is not counted.
    flops = count_flops(name, variant, size) * (3 if mode == 'training' else 1)
    return dict(seconds=seconds, memory=peak, flops=flops, bytes=count_bytes(name, variant, mode, size))


def timed(step: Callable[[], None], device: str, clock: str = 'wall') -> float:
    import torch

    if device == 'cuda':
        start, stop = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda.synchronize()
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000
    now = time.perf_counter if clock == 'wall' else time.process_time
    before = now()
    step()
    return now() - before


class Memory:
    """The peak of memory since it was created, beyond what was in use then."""

    def __init__(self, device: str):
        import torch

        self.device = device
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            Path('/proc/self/clear_refs').write_text('5')  # forget the peak of building the model
            self.before = self._status('VmRSS')

    def peak(self) -> int:
        import torch

        return (torch.cuda.max_memory_allocated() if self.device == 'cuda' else self._status('VmHWM')) - self.before

    @staticmethod
    def _status(field: str) -> int:
        line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024


def count_flops(name: str, variant: str, size: Sequence[int]) -> int:
    """Of the matrix products and convolutions of a forward pass in the plain form, counted on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode

    if 'attention' in name:
        variant = 'naive'
    elif variant.startswith('DAT'):
        variant = variant.split()[0] + ' naive'
    counter = FlopCounterMode(display=False)
    step = make_step(name, variant, 'forward', size, 'meta')
    with counter:
        step()
    return counter.get_total_flops()


def count_bytes(name: str, variant: str, mode: str, size: Sequence[int]) -> int:
    """What all operations read and write, each on its own, counted on the meta device; caches may hold much of it."""
    from counter import Counter

    counter = Counter()
    step = make_step(name, variant.replace(' compiled', ''), mode, size, 'meta')
    with counter:
        step()
    return counter.bytes


def make_step(name: str, variant: str, mode: str, size: Sequence[int], device: str) -> Callable[[], None]:
    if 'deformable' in name:
        function, inputs = deformable_attention(name, variant, size, device)
    elif 'neighbourhood' in name:
        function, inputs = neighborhood_attention(variant, size, device)
    elif 'window' in name:
        function, inputs = window_attention(variant, size, device)
    else:
        function, inputs = backbone(variant, mode, size, device)
    return training_step(function, inputs) if mode == 'training' else forward_step(function, inputs)


def forward_step(function: Callable, inputs: Sequence) -> Callable[[], None]:
    import torch

    def step() -> None:
        with torch.no_grad():
            function(*inputs)

    return step


def training_step(function: Callable, inputs: Sequence) -> Callable[[], None]:
    import torch

    def step() -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        outs = function(*leaves)
        outs = [outs] if isinstance(outs, torch.Tensor) else list(outs)
        torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])

    return step


def deformable_attention(name: str, impl: str, size: Sequence[int], device: str) -> tuple[Callable, list]:
    import torch

    from mmdat.ops import TableBias, deformable_attention

    stride, channels, heads, groups, key_stride, table = (
        (4, 64, 2, 1, 8, 111) if '++' in name else (16, 384, 12, 3, 1, 27)
    )
    height, width = [side // stride for side in size]
    rows, cols = height // key_stride, width // key_stride
    axis = lambda n: torch.linspace(-1, 1, n, device=device)  # noqa: E731
    position = torch.stack(torch.meshgrid(axis(rows), axis(cols), indexing='ij'), -1)
    position = position + 0.1 * torch.randn(1, groups, rows, cols, 2, device=device)
    maps = [network_map(channels, *s, device) for s in ((height, width), (rows, cols), (rows, cols))]

    def attend(query, key, value, table, position):
        bias = TableBias(table, position, axis(height), axis(width), even=True)
        return deformable_attention(query, key, value, heads, bias, impl=impl)

    return attend, [*maps, torch.randn(heads, table, table, device=device), position]


def neighborhood_attention(impl: str, size: Sequence[int], device: str) -> tuple[Callable, list]:
    import torch

    from mmdat.ops import neighborhood_attention

    maps = [network_map(64, *[side // 4 for side in size], device) for _ in range(3)]
    table = torch.randn(2, 13, 13, device=device)
    return lambda *args: neighborhood_attention(*args, 2, 7, impl=impl), [*maps, table]


def window_attention(impl: str, size: Sequence[int], device: str) -> tuple[Callable, list]:
    import torch

    from mmdat.ops import window_attention

    maps = [network_map(96, *[-(-side // 4 // 7) * 7 for side in size], device) for _ in range(3)]
    table = torch.randn(13**2, 3, device=device)
    return lambda *args: window_attention(*args, 3, 7, 4, impl=impl), [*maps, table]


def network_map(channels: int, height: int, width: int, device: str):
    """A random map in the layout that maps have in the network."""
    import torch

    return torch.randn(1, channels, height, width, device=device).contiguous(memory_format=torch.channels_last)


def backbone(variant: str, mode: str, size: Sequence[int], device: str) -> tuple[Callable, list]:
    import torch

    model_name, _, option = variant.partition(' ')
    if model_name == 'Swin-T':
        from mmdet.models import SwinTransformer

        model = SwinTransformer(drop_path_rate=0.2)
    else:
        from mmdat import DAT

        options = dict(with_cp=dict(with_cp=True), naive=dict(attn_impl='naive')).get(option, {})
        model = DAT('tiny++' if '++' in model_name else 'tiny', drop_path_rate=0.2, **options)
    model = model.to(device)
    model.train(mode == 'training')
    if option == 'compiled':
        model = torch.compile(model)
    return model, [torch.randn(1, 3, *size, device=device)]


def describe_machine(device: str, threads: int) -> dict[str, Any]:
    """What was measured on, with its rates of matrix products (float32) and copies."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2, 2048, 2048, device=device)
    out = torch.empty_like(a)
    big = torch.randn(2**26, device=device)
    copy = torch.empty_like(big)
    product = min(timed(lambda: torch.mm(a, b, out=out), device) for _ in range(5))
    copying = min(timed(lambda: copy.copy_(big), device) for _ in range(5))
    return dict(
        processor=torch.cuda.get_device_name() if device == 'cuda' else processor_name(),
        cores=os.cpu_count(),
        threads=threads,
        load=os.getloadavg()[0],
        torch=torch.__version__,
        python=platform.python_version(),
        flops_per_second=2 * 2048**3 / product,
        bytes_per_second=2 * big.numel() * 4 / copying,  # read and written
    )


def processor_name() -> str:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()


def table(results: Sequence[dict[str, Any]], machine: dict[str, Any]) -> str:
    """A Markdown table; times and memory also relative to the first variant, rates to the machine's."""
    lines = [
        '| what | variant | mode | time (spread) | of the first | memory | of the first | products, % of peak '
        '| bytes, % of copying |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        products = 100 * r['flops'] / r['seconds'] / machine['flops_per_second']
        traffic = 100 * r['bytes'] / r['seconds'] / machine['bytes_per_second']
        lines.append(
            f'| {r["case"]} | {r["variant"]} | {r["mode"]} '
            f'| {r["seconds"]:.2f} s ({r["fastest"]:.2f} to {r["slowest"]:.2f}) '
            f'| {r["relative_seconds"]:.3f} | {r["memory"] / 2**30:.2f} GiB | {r["relative_memory"]:.3f} '
            f'| {products:.0f} | {traffic:.0f} |'
        )
    return '\n'.join(lines)


def plot_scaling(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Time and memory against pixels, with the exponent of a power law."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for ax, field, unit, label in zip(axes, ('seconds', 'memory'), (1, 2**30), ('seconds', 'GiB')):
        for variant in BACKBONES:
            some = [r for r in results if r['variant'] == variant]
            pixels = [math.prod(r['size']) for r in some]
            values = [r[field] / unit for r in some]
            ax.loglog(pixels, values, 'o-', label=f'{variant}: pixels^{exponent(pixels, values):.2f}')
        ax.set(xlabel='image', ylabel=label)
        ax.set_xticks(pixels, [f'{height}x{width}' for height, width in (r['size'] for r in some)], rotation=30)
        ax.xaxis.minorticks_off()
        ax.yaxis.set_major_formatter('{x:g}')
        ax.grid(True, which='both', alpha=0.3)
        ax.legend(fontsize='small')
    figure.suptitle('Training step of one image, float32')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms (least squares)."""
    x, y = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


if __name__ == '__main__':
    main()
