"""Measure mmdat on a machine with a GPU, and write a page of it.

    python benchmarks/gpu.py --out DIR [--parts doctor tests kernels operators backbones batch training]

needs torch and mmdat, nothing compiled (Triton comes with torch's builds for CUDA). Each part runs in a process of its
own: one that fails, or takes longer than ``--limit`` seconds, does not lose the others. DIR then holds ``README.md``
(the page), plots, ``gpu.json`` with every number and a log per part. The exit code is 0 only if all parts went well.

``--device cpu --quick`` runs all of it with small sizes, to see that the script works; such numbers mean nothing.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PARTS = ('doctor', 'tests', 'kernels', 'operators', 'backbones', 'batch', 'training')
TESTS = ('test_ops.py', 'test_mixers.py', 'test_dat.py', 'test_parity.py', 'test_triton.py')


def main() -> int:
    args = parse_args()
    if args.part:
        return run_part(args.part, args)
    import torch

    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('PyTorch sees no GPU here; --device cpu --quick tries the script without one')
    args.out.mkdir(parents=True, exist_ok=True)
    report = dict(machine=machine(args.device), quick=args.quick, parts={})
    for part in args.parts:
        report['parts'][part] = found = start_part(part, args)
        print(f'{part}: {"done" if found["ok"] else "FAILED"} in {found["seconds"]:.0f} s', flush=True)
        # After each part: a machine may be taken away.
        (args.out / 'gpu.json').write_text(json.dumps(report, indent=1) + '\n')
        (args.out / 'README.md').write_text(page(report))
    plot(report, args.out)
    return 0 if all(found['ok'] for found in report['parts'].values()) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='directory for what is found')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, help='default: all')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='small sizes')
    parser.add_argument('--limit', type=float, default=180, help='seconds for a part (default: 180)')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def machine(device: str) -> dict[str, Any]:
    """What is measured on."""
    import torch

    found: dict[str, Any] = dict(
        device=device, torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version()
    )
    try:
        import triton

        found['triton'] = triton.__version__
    except ImportError:
        found['triton'] = None
    if device == 'cuda':
        properties = torch.cuda.get_device_properties(0)
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        try:
            driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split('\n')[0]
        except (OSError, subprocess.CalledProcessError):
            driver = 'unknown'
        found.update(
            card=properties.name,
            cards=torch.cuda.device_count(),
            capability=f'{properties.major}.{properties.minor}',
            memory=properties.total_memory,
            driver=driver,
        )
    return found


def start_part(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own, its output in ``PART.log``."""
    command = [sys.executable, __file__, '--out', str(args.out), '--part', part, '--device', args.device]
    result = args.out / f'{part}.json'
    result.unlink(missing_ok=True)
    start = time.monotonic()
    with open(args.out / f'{part}.log', 'w') as log:
        try:
            environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
            done = subprocess.run(
                command + ['--quick'] * args.quick,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=args.limit,
            )
            problem = None if done.returncode == 0 else f'exit code {done.returncode}, see {part}.log'
        except subprocess.TimeoutExpired:
            problem = f'took longer than {args.limit:.0f} s'
    rows = json.loads(result.read_text()) if result.exists() else []
    result.unlink(missing_ok=True)
    return dict(ok=problem is None, problem=problem, seconds=time.monotonic() - start, rows=rows)


# --- in the process of a part --------------------------------------------------------------


def run_part(part: str, args: argparse.Namespace) -> int:
    own = dict(doctor=run_doctor, tests=run_tests, training=run_training)
    if part in own:
        rows, code = own[part](args)
    else:
        import gpu_parts

        setup = gpu_parts.Setup(args.device, args.quick)
        rows, code = getattr(gpu_parts, f'run_{part}')(setup), 0
        # Where kernels cannot run at all, that is known beforehand, and no failure.
        if any('error' in row and "impl='triton' needs" not in row['error'] for row in rows):
            code = 1
    (args.out / f'{part}.json').write_text(json.dumps(rows))
    return code


def run_doctor(args: argparse.Namespace) -> tuple[list, int]:
    done = subprocess.run([sys.executable, '-m', 'mmdat.doctor'], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    return [dict(output=done.stdout)], done.returncode


def run_tests(args: argparse.Namespace) -> tuple[list, int]:
    """The tests of operators, mixers, backbones and parity on the device."""
    files = [f'tests/{name}' for name in (TESTS[1:2] if args.quick else TESTS)]
    environment = dict(os.environ, MMDAT_TEST_DEVICE=args.device)
    command = [sys.executable, '-m', 'pytest', '-q', '--tb=short', *files]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    summary = [line for line in done.stdout.splitlines() if re.search(r'\d+ (passed|failed|error)', line)]
    return [dict(files=files, summary=summary[-1] if summary else 'no summary')], done.returncode


def run_training(args: argparse.Namespace) -> tuple[list, int]:
    """A nano Mask R-CNN on the demo's shapes under AMP, with all GPUs: the loss must fall."""
    import torch

    config = ROOT / 'configs/demo/maskrcnn_datnano_shapes.py'
    work_dir = args.out.resolve() / 'training'
    steps = 4 if args.quick else 200
    options = [
        *('train_cfg.by_epoch=False', f'train_cfg.max_iters={steps}', f'train_cfg.val_interval={10 * steps}'),
        *('default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=100000'),
    ]
    amp = ['--amp'] if args.device == 'cuda' else []
    cards = torch.cuda.device_count() if args.device == 'cuda' else 1
    run = (
        [sys.executable, '-m', 'torch.distributed.run', f'--nproc_per_node={cards}'] if cards > 1 else [sys.executable]
    )
    command = [*run, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(work_dir), *amp]
    command += ['--launcher', 'pytorch'] if cards > 1 else []
    environment = dict(os.environ)
    if args.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    # Here, for the config looks for data/shapes from where it runs.
    subprocess.run([sys.executable, str(ROOT / 'tools/make_shapes.py')], cwd=args.out, check=True)
    done = subprocess.run([*command, '--cfg-options', *options], cwd=args.out, env=environment)
    losses = []
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses = [line['loss'] for line in lines if 'loss' in line]
    part = max(len(losses) // 10, 1)
    first, last = [sum(some) / len(some) if some else None for some in (losses[:part], losses[-part:])]
    falls = bool(losses) and (args.quick or last < first)
    print(f'loss from {first} to {last} over {len(losses)} steps')
    row = dict(steps=len(losses), cards=cards, amp=bool(amp), first=first, last=last, losses=losses)
    return [row], done.returncode or (0 if falls else 1)


# --- the page ------------------------------------------------------------------------------


def page(report: dict[str, Any]) -> str:
    """All that was found, in Markdown."""
    here = report['machine']
    name = here.get('card', 'no GPU')
    lines = [f'# mmdat on {name}', '']
    if report['quick'] or here['device'] == 'cpu':
        lines += ['**This run only tried the script: its numbers mean nothing.**', '']
    lines += [', '.join(f'{key} {value}' for key, value in here.items() if value is not None), '']
    tables: dict[str, Callable[[Sequence[dict]], list[str]]] = dict(
        doctor=lambda rows: ['```', *(row['output'] for row in rows), '```'],
        tests=lambda rows: [f'`{" ".join(row["files"])}`: {row["summary"]}' for row in rows],
        kernels=kernels_table,
        operators=operators_table,
        backbones=backbones_table,
        batch=batch_table,
        training=lambda rows: [
            f'Loss {row["first"]:.3g} to {row["last"]:.3g} in {row["steps"]} steps on {row["cards"]} device(s)'
            f'{", AMP" if row["amp"] else ""}.'
            for row in rows
            if row['losses']
        ],
    )
    titles = dict(
        doctor='Doctor',
        tests='Tests on the device',
        kernels='Errors against the plain form in float32, of the largest value',
        operators='Operators',
        backbones='Backbones',
        batch='Largest batch of a training step at 800x1344 under AMP',
        training='A nano Mask R-CNN',
    )
    for part, found in report['parts'].items():
        lines += [f'## {titles[part]}', '']
        if not found['ok']:
            lines += [f'**Failed:** {found["problem"]}', '']
        lines += [*tables[part](found['rows']), '']
    return '\n'.join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    return lines + [f'| {" | ".join(row)} |' for row in rows]


def milliseconds(row: dict[str, Any]) -> str:
    return f'{1e3 * row["seconds"]:.2f} ({1e3 * row["fastest"]:.2f} to {1e3 * row["slowest"]:.2f})'


def gigabytes(row: dict[str, Any]) -> str:
    return '' if row['memory'] is None else f'{row["memory"] / 2**30:.2f}'


def kernels_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        [row['operator'], row['dtype'], row['impl']]
        + ([row['error'], ''] if 'error' in row else [f'{row["output"]:.1e}', f'{row["gradients"]:.1e}'])
        for row in rows
    ]
    return markdown(('operator', 'dtype', 'form', 'output', 'gradients'), cells)


def operators_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        [row['operator'], row['dtype'], row['mode'], row['impl']]
        + ([row['error'], ''] if 'error' in row else [milliseconds(row), gigabytes(row)])
        for row in rows
    ]
    return markdown(('operator', 'dtype', 'mode', 'form', 'ms (spread)', 'GiB'), cells)


def backbones_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        mode = ('training step' if row['training'] else 'forward') + (', AMP' if row['amp'] else '')
        start = [row['backbone'], f'{row["size"][0]}x{row["size"][1]}', str(row['batch']), mode]
        if 'error' in row:
            cells.append([*start, row['error'], '', ''])
        else:
            cells.append([*start, milliseconds(row), f'{row["images_per_second"]:.1f}', gigabytes(row)])
    return markdown(('backbone', 'image', 'batch', 'mode', 'ms (spread)', 'images/s', 'GiB'), cells)


def batch_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        [row['backbone'], row['error'] if 'error' in row else f'{row["batch"]}{" or more" * row["limit"]}']
        for row in rows
    ]
    return markdown(('backbone', 'largest batch'), cells)


def plot(report: dict[str, Any], out: Path) -> None:
    """Times of operators and backbones as bars, the training's loss as a line; those that there are."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows = lambda part: [r for r in report['parts'].get(part, {}).get('rows', []) if 'error' not in r]  # noqa: E731
    bars = {
        'operators': [(f'{r["operator"]}, {r["dtype"]}, {r["mode"]}, {r["impl"]}', r) for r in rows('operators')],
        'backbones': [
            (f'{r["backbone"]}, {r["size"][0]}, {r["batch"]}, {"training" if r["training"] else "forward"}', r)
            for r in rows('backbones')
            if r['amp']
        ],
    }
    for name, found in bars.items():
        if found:
            figure, ax = plt.subplots(figsize=(10, 1 + 0.2 * len(found)))
            ax.barh([label for label, _ in found], [1e3 * row['seconds'] for _, row in found])
            ax.invert_yaxis()
            ax.set(xlabel='ms', xscale='log')
            ax.tick_params(axis='y', labelsize=6)
            figure.savefig(out / f'{name}.png', dpi=120, bbox_inches='tight')
            plt.close(figure)
    for row in rows('training'):
        figure, ax = plt.subplots()
        ax.plot(row['losses'])
        ax.set(xlabel='step', ylabel='loss')
        figure.savefig(out / 'training.png', dpi=120)


if __name__ == '__main__':
    sys.exit(main())
