"""Measure mmdat on a machine with a GPU, and write a page of it.

    python benchmarks/gpu.py --out DIR [--parts doctor tests kernels operators backbones batch training]

needs torch and mmdat, nothing compiled (Triton comes with torch's builds for CUDA). Each part runs in a process of its
own and writes down each result as it comes: a part that fails, or is stopped, loses neither the others nor what it has
found. All parts together take no longer than ``--minutes``, of which each has a share; the most telling cases come
first. DIR then holds ``README.md`` (the page), plots, ``gpu.json`` with every number and a log per part. The exit code
is 0 only if all parts went well.

``--device cpu --quick`` runs all of it with small sizes, to see that the script works; such numbers mean nothing.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
#: The parts, and the share of the time that each may take.
PARTS = dict(doctor=0.11, tests=0.2, kernels=0.1, operators=0.1, backbones=0.3, batch=0.09, training=0.1)
TESTS = (
    *('test_mixers.py', 'test_ops.py', 'test_ops_inputs.py', 'test_ops_transforms.py', 'test_layer.py'),
    *('test_dat.py', 'test_parity.py', 'test_triton.py'),
)


def main() -> int:
    args = parse_args()
    if args.part:
        return run_part(args)
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
        plots = plot(report, args.out)
        (args.out / 'README.md').write_text(page(report, plots))
    return 0 if all(found['ok'] for found in report['parts'].values()) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='directory for what is found')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='default: all')
    parser.add_argument('--cases', default='', help='a regular expression: measure only cases whose name has it')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument('--quick', action='store_true', help='small sizes')
    parser.add_argument('--minutes', type=float, default=10, help='for all parts together (default: 10)')
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
    """Run a part in a process of its own, its output in ``PART.log``, its results line by line in ``PART.jsonl``."""
    command = [sys.executable, __file__, '--part', part, '--out', str(args.out), '--device', args.device]
    command += ['--minutes', str(args.minutes), '--cases', args.cases, *['--quick'] * args.quick]
    results = args.out / f'{part}.jsonl'
    results.write_text('')
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    start = time.monotonic()
    with open(args.out / f'{part}.log', 'w') as log:
        # A session of its own, to be ended with all that it has started.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds_for(part, args))
            problem = None if code == 0 else f'exit code {code}, see {part}.log'
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            problem = f'stopped after {seconds_for(part, args):.0f} s'
    # A line that was being written when its process ended is none.
    rows = [json.loads(line) for line in results.read_text().splitlines(keepends=True) if line.endswith('\n')]
    results.unlink()
    return dict(ok=problem is None, problem=problem, seconds=time.monotonic() - start, rows=rows)


def seconds_for(part: str, args: argparse.Namespace) -> float:
    return 60 * args.minutes * PARTS[part]


# --- in the process of a part --------------------------------------------------------------


def run_part(args: argparse.Namespace) -> int:
    """Write down what a part finds. The exit code is 1 if anything could not be measured or was wrong."""
    own = dict(doctor=run_doctor, tests=run_tests, training=run_training)
    code = 0
    with open(args.out / f'{args.part}.jsonl', 'a') as file:
        for row in own.get(args.part, run_cases)(args):
            print(json.dumps(row), file=file, flush=True)
            code = code or int(not row.pop('ok', 'error' not in row))
    return code


def run_cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cases of a part of gpu_parts.py, as long as there is time."""
    import gpu_parts

    # Some of the time is for starting, and for the case that is being measured when it ends.
    end = time.monotonic() + 0.9 * seconds_for(args.part, args)
    for case, measure in gpu_parts.CASES[args.part](gpu_parts.Setup(args.device, args.quick)):
        if re.search(args.cases, ', '.join(map(str, case.values()))):
            yield gpu_parts.attempt(case, measure) if time.monotonic() < end else {**case, 'error': 'no time left'}


def run_doctor(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What the doctor says, line by line, as each check takes its time."""
    command = [sys.executable, '-u', '-m', 'mmdat.doctor']
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            yield dict(output=line.rstrip(), ok=True)
    yield dict(output=f'exit code {process.returncode}', ok=process.returncode == 0)


def run_tests(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The tests of operators, mixers, backbones and parity on the device, a process for each file, all at a time."""
    environment = dict(os.environ, MMDAT_TEST_DEVICE=args.device)
    running = {}
    for name in TESTS[:1] if args.quick else TESTS:
        command = [sys.executable, '-m', 'pytest', '--tb=short', f'tests/{name}']
        with open(args.out / f'{name}.log', 'w') as log:
            running[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    for name, process in running.items():
        code = process.wait()
        lines = (args.out / f'{name}.log').read_text().splitlines()
        summary = [line for line in lines if re.search(r'\d+ (passed|failed|error)', line)]
        failures = [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
        yield dict(
            file=name, summary=summary[-1] if summary else f'exit code {code}', failures=failures[:20], ok=code == 0
        )


def run_training(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A nano Mask R-CNN on the demo's shapes under AMP, with all GPUs: the loss must fall."""
    import torch

    work_dir = args.out.resolve() / 'training'
    cards = torch.cuda.device_count() if args.device == 'cuda' else 1
    amp = args.device == 'cuda'
    # 80 steps of a card are an epoch.
    epochs, images = (1, 16) if args.quick else (2 * cards, 320)
    # No validation, not after the last epoch either.
    options = [f'train_cfg.max_epochs={epochs}', 'train_cfg.val_begin=1000', 'default_hooks.logger.interval=1']
    command = [sys.executable]
    command += ['-m', 'torch.distributed.run', f'--nproc_per_node={cards}'] if cards > 1 else []
    command += [str(ROOT / 'tools/train.py'), str(ROOT / 'configs/demo/maskrcnn_datnano_shapes.py')]
    command += ['--work-dir', str(work_dir), *['--amp'] * amp, *['--launcher', 'pytorch'] * (cards > 1)]
    environment = dict(os.environ)
    if args.device == 'cpu':
        environment['CUDA_VISIBLE_DEVICES'] = ''
    # Here, for the config looks for data/shapes from where it runs.
    make_shapes = [sys.executable, str(ROOT / 'tools/make_shapes.py'), '--num-train', str(images)]
    subprocess.run(make_shapes, cwd=args.out, check=True)
    subprocess.run([*command, '--cfg-options', *options], cwd=args.out, env=environment, check=True)
    *_, scalars = sorted(work_dir.glob('*/vis_data/scalars.json'))
    losses = [line['loss'] for line in map(json.loads, scalars.read_text().splitlines()) if 'loss' in line]
    part = max(len(losses) // 10, 1)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    falls = last < first or args.quick  # in four steps it need not
    yield dict(cards=cards, amp=amp, steps=len(losses), first=first, last=last, losses=losses, ok=falls)


# --- the page ------------------------------------------------------------------------------


def page(report: dict[str, Any], plots: dict[str, str]) -> str:
    """All that was found, in Markdown; ``plots`` are file names by part."""
    here = report['machine']
    lines = [f'# mmdat on {here.get("card", "no GPU")}', '']
    if report['quick'] or here['device'] == 'cpu':
        lines += ['**This run only tried the script: its numbers mean nothing.**', '']
    lines += [', '.join(f'{key} {value}' for key, value in here.items() if value is not None), '']
    tables: dict[str, tuple[str, Callable[[Sequence[dict]], list[str]]]] = dict(
        doctor=('Doctor', lambda rows: ['```', *(row['output'] for row in rows), '```']),
        tests=('Tests on the device', tests_list),
        kernels=('Errors against the plain form in float32, of the largest value', kernels_table),
        operators=('Operators', operators_table),
        backbones=('Backbones', backbones_table),
        batch=('Largest batch of a training step at 800x1344 under AMP', batch_table),
        training=('A nano Mask R-CNN', training_list),
    )
    for part, found in report['parts'].items():
        title, table = tables[part]
        lines += [f'## {title}', '']
        if not found['ok']:
            lines += [f'**Failed:** {found["problem"]}', '']
        lines += [*table(found['rows']), '']
        if part in plots:
            lines += [f'![{title}]({plots[part]})', '']
    return '\n'.join(lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    return lines + [f'| {" | ".join(row)} |' for row in rows]


def milliseconds(row: dict[str, Any]) -> str:
    return f'{1e3 * row["seconds"]:.2f} ({1e3 * row["fastest"]:.2f} to {1e3 * row["slowest"]:.2f})'


def gigabytes(row: dict[str, Any]) -> str:
    return '' if row['memory'] is None else f'{row["memory"] / 2**30:.2f}'


def tests_list(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        line
        for row in rows
        for line in (f'- `{row["file"]}`: {row["summary"]}', *(f'    - `{failure}`' for failure in row['failures']))
    ]


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
    cells = [
        [row['backbone'], row['size'], row['mode'], row['precision'], str(row['batch'])]
        + (
            [row['error'], '', '']
            if 'error' in row
            else [milliseconds(row), f'{row["images_per_second"]:.1f}', gigabytes(row)]
        )
        for row in rows
    ]
    return markdown(('backbone', 'image', 'mode', 'precision', 'batch', 'ms (spread)', 'images/s', 'GiB'), cells)


def batch_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        [row['backbone'], row['error'] if 'error' in row else f'{row["batch"]}{" or more" * row["limit"]}']
        for row in rows
    ]
    return markdown(('backbone', 'largest batch'), cells)


def training_list(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [
        f'Loss {row["first"]:.3g} to {row["last"]:.3g} in {row["steps"]} steps on {row["cards"]} device(s)'
        f'{", AMP" * row["amp"]}.'
        for row in rows
    ]


def plot(report: dict[str, Any], out: Path) -> dict[str, str]:
    """Draw times of operators and backbones as bars and the training's loss as a line; returns files by part."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    files = {}
    for part, found in report['parts'].items():
        rows = [row for row in found['rows'] if 'error' not in row]
        if part not in ('operators', 'backbones', 'training') or not rows:
            continue
        figure, ax = plt.subplots(figsize=(10, 1 + 0.2 * len(rows)) if part != 'training' else None)
        if part == 'training':
            ax.plot(rows[0]['losses'])
            ax.set(xlabel='step', ylabel='loss')
        else:
            names = ('operator', 'backbone', 'size', 'batch', 'dtype', 'precision', 'mode', 'impl')
            labels = [', '.join(str(row[name]) for name in names if name in row) for row in rows]
            ax.barh(labels, [1e3 * row['seconds'] for row in rows])
            ax.invert_yaxis()
            ax.set(xlabel='ms', xscale='log')
            ax.tick_params(axis='y', labelsize=6)
        files[part] = f'{part}.png'
        figure.savefig(out / files[part], dpi=120, bbox_inches='tight')
        plt.close(figure)
    return files


if __name__ == '__main__':
    sys.exit(main())
