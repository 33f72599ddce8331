"""What tools/compare.py does: train models that differ in nothing but the backbone, and say how they did."""

import contextlib
import inspect
import json
import multiprocessing
import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdat.config.load import load_config
from mmdat.errors import RunError

from .model import build_model
from .train import train

#: What the evaluators call a result: its usual name, and the factor that makes it per cent.
METRICS = {
    'coco/bbox_mAP': ('box AP', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'mIoU': ('mIoU', 1),
    'accuracy/top1': ('top-1 accuracy', 1),
}
_RESULT = 'result.json'


class Job(NamedTuple):
    """One training run of a comparison.

    Attributes:
        name: Of the config.
        seed: Of the run.
        directory: Where it writes.
        options: Arguments of :func:`mmdat.config.load.load_config`.
    """

    name: str
    seed: int
    directory: Path
    options: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether the run has come to its end."""
        return (self.directory / _RESULT).is_file()


def compare(
    configs: Sequence[str],
    work_dir: Union[str, Path],
    seeds: Sequence[int] = (0, 1, 2),
    only: Optional[str] = None,
    amp: bool = False,
    **options: Any,
) -> Optional[str]:
    """Train several configs with several seeds, each run in a process of its own, and write a table and curves.

    Runs that are finished are not made again, so a comparison goes on where it was broken off, and runs may be made on
    several machines that share the directory.

    Args:
        configs: Config files. They may differ in ``model.backbone`` and in the channels that the neck or, without one,
            the heads take from it.
        work_dir: Where runs and results go, ``comparison.md``, ``comparison.png`` and ``comparison.json``.
        seeds: The seeds that every config is trained with.
        only: Make only this run, ``NAME/SEED``.
        amp: Train in mixed precision.
        options: Further arguments of :func:`mmdat.config.load.load_config`.

    Returns:
        The table, once all runs are there.

    Raises:
        RunError: If the configs differ in something else, or a run fails.
    """
    work_dir = Path(work_dir)
    cfgs = {Path(path).stem: load_config(path, **options) for path in configs}
    if len(cfgs) < len(configs) or len(cfgs) < 2:
        raise RunError(f'a comparison needs at least two configs of different names, got {", ".join(configs)}')
    check_comparable(cfgs)
    jobs = [
        Job(Path(path).stem, seed, work_dir / Path(path).stem / f'seed{seed}', dict(options, path=path))
        for seed in seeds
        for path in configs
    ]
    chosen = [job for job in jobs if only in (None, f'{job.name}/{job.seed}')]
    if not chosen:
        raise RunError(f'there is no run {only}: choose one of {", ".join(f"{job.name}/{job.seed}" for job in jobs)}')
    for number, job in enumerate(chosen, 1):
        if not job.done:
            print(f'run {number} of {len(chosen)}: {job.name}, seed {job.seed}, in {job.directory}', flush=True)
            _in_process(job, amp)
    if not all(job.done for job in jobs):
        return None
    return _write(work_dir, {name: [job for job in jobs if job.name == name] for name in cfgs})


# --- what may differ -------------------------------------------------------------------------------


def check_comparable(cfgs: dict[str, Config]) -> None:
    """Check that configs differ in nothing but the backbone and what follows from it.

    Raises:
        RunError: If they do; names the first difference.
    """
    (first, expected), *others = [(name, _compared(cfg)) for name, cfg in cfgs.items()]
    for name, found in others:
        for path, a, b in _differences(expected, found):
            raise RunError(
                f'{name} differs from {first} in {path}, {b!r} and not {a!r}: make them equal, for only model.backbone '
                f'and the channels that it gives may differ'
            )


def _compared(cfg: Config) -> dict[str, Any]:
    """What a Runner makes of a config, without the backbone and the channels that it gives."""
    taken = set(inspect.signature(Runner.__init__).parameters) - {'work_dir', 'randomness', 'cfg', 'experiment_name'}
    parts = {key: value for key, value in cfg.to_dict().items() if key in taken}
    model = parts['model']
    model.pop('backbone', None)
    takers = (
        [model['neck']]
        if isinstance(model.get('neck'), dict)
        else [head for key, head in model.items() if key.endswith('head') and isinstance(head, dict)]
    )
    for taker in takers:
        taker.pop('in_channels', None)
    hooks = parts.get('custom_hooks') or []
    parts['custom_hooks'] = [hook for hook in hooks if hook.get('type') != 'mmdat.SamplingPointsHook']  # logs DATs only
    return parts


def _differences(a: Any, b: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            yield from _differences(a.get(key), b.get(key), f'{path}.{key}' if path else key)
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b)):
            yield from _differences(*pair, f'{path}[{i}]')
    elif a != b:
        yield path, a, b


# --- runs ------------------------------------------------------------------------------------------


def _in_process(job: Job, amp: bool) -> None:
    """A run in a new process, so that its memory is its own."""
    job.directory.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context('spawn').Process(target=_run, args=(job, amp))
    process.start()
    process.join()
    if not job.done:
        raise RunError(
            f'the run of {job.name} with seed {job.seed} failed: {job.directory / "output.txt"} says why; start the '
            f'comparison again when it is put right, and it goes on from here'
        )


def _run(job: Job, amp: bool) -> None:
    output = (job.directory / 'output.txt').open('w')
    with output, contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            result = _train(job, amp)
        except BaseException:
            traceback.print_exc()
            raise
    (job.directory / _RESULT).write_text(json.dumps(result))


def _train(job: Job, amp: bool) -> dict[str, Any]:
    cfg = load_config(**dict(job.options, work_dir=str(job.directory)))
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=job.seed)
    model = build_model(cfg)
    parameters = {
        'model': sum(parameter.numel() for parameter in model.parameters()),
        'backbone': sum(parameter.numel() for parameter in model.backbone.parameters()),
    }
    start = time.perf_counter()
    train(cfg, amp)
    return dict(parameters=parameters, seconds=time.perf_counter() - start, memory=_peak_memory())


def _peak_memory() -> int:
    """Bytes at most, of the GPU if there is one, or else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- results ---------------------------------------------------------------------------------------


def _scalars(job: Job) -> list[dict[str, Any]]:
    """What MMEngine has logged, line by line, of the last attempt."""
    paths = sorted(job.directory.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in paths[-1].read_text().splitlines()]


def _curves(job: Job) -> dict[str, list[tuple[int, float]]]:
    """The training loss and the results of evaluations, as (step, value)."""
    curves = defaultdict(list)
    for line in _scalars(job):
        if 'loss' in line:
            curves['loss'].append((line['iter'] if 'iter' in line else line['step'], line['loss']))
        for key, (name, factor) in METRICS.items():
            if key in line:
                curves[name].append((line['step'], line[key] * factor))
    return curves


def _write(work_dir: Path, runs: dict[str, list[Job]]) -> str:
    curves = {name: [_curves(job) for job in jobs] for name, jobs in runs.items()}
    metrics = [name for name, _ in METRICS.values() if name in curves[next(iter(runs))][0]]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'
    head = ['config', 'backbone, model (M)', *metrics, 'time per step (ms)', 'run (min)', f'memory, {device} (MiB)']
    rows, values = [head, ['---'] * len(head)], {}
    for name, jobs in runs.items():
        results = [json.loads((job.directory / _RESULT).read_text()) for job in jobs]
        parameters = results[0]['parameters']
        last = {metric: [curve[metric][-1][1] for curve in curves[name]] for metric in metrics}
        steps = [line['time'] for job in jobs for line in _scalars(job) if 'loss' in line]
        rows.append(
            [
                name,
                f'{parameters["backbone"] / 1e6:.2f}, {parameters["model"] / 1e6:.2f}',
                *(_mean_and_spread(last[metric]) for metric in metrics),
                f'{statistics.median(steps) * 1000:.0f}',
                f'{statistics.mean(result["seconds"] for result in results) / 60:.1f}',
                f'{max(result["memory"] for result in results) / 2**20:.0f}',
            ]
        )
        values[name] = dict(seeds=[job.seed for job in jobs], results=results, last=last, curves=curves[name])
    table = '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows) + '\n'
    (work_dir / 'comparison.md').write_text(table)
    (work_dir / 'comparison.json').write_text(json.dumps(values))
    _plot(curves, metrics, work_dir / 'comparison.png')
    return table


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and, of several values, the standard deviation between them."""
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread}'


def _plot(curves: dict[str, list[dict]], metrics: Sequence[str], path: Path) -> None:
    """The mean over the seeds, and a band from the lowest to the highest."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * (len(metrics) + 1), 4), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(metrics) + 1, squeeze=False)[0]
    for axis, metric in zip(axes, [*metrics, 'loss']):
        for name, runs in curves.items():
            steps = [step for step, _ in runs[0][metric]]
            values = list(zip(*([value for _, value in run[metric]] for run in runs)))
            line = axis.plot(steps, [statistics.mean(at_step) for at_step in values], label=name, marker='.')[0]
            axis.fill_between(steps, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2)
        axis.set(title=metric, xlabel='iteration' if metric == 'loss' else 'step of the evaluation')
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
