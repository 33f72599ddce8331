"""What tools/train.py and tools/test.py do: from a config and options to a run of MMEngine's Runner."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Optional, Union

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from mmdat.checkpoints.resuming import resumed
from mmdat.checkpoints.schemes import is_remote
from mmdat.checkpoints.whole_files import with_whole_checkpoints
from mmdat.checkpoints.without_code import TRUSTED, CheckpointFiles, reading_without_code
from mmdat.checkpoints.work_dir import only_run
from mmdat.config.checks import check_amp, check_compile, check_fit, check_run, check_start, check_work_dir
from mmdat.config.parts import check_arguments, check_launcher, check_maps, check_optimizer
from mmdat.config.runs import (
    for_testing,
    for_training,
    on_cpu_processes,
    reproducible,
    with_checks,
    with_names_of_its_own,
)
from mmdat.config.sharding import check_sharding
from mmdat.models.checkpoint import unwrap
from mmdat.models.wrapped import innermost_model

from .process import borrowed_process, traceback_in_log, without_deprecations


def train(
    cfg: Config,
    amp: bool = False,
    resume: Optional[str] = None,
    auto_scale_lr: bool = False,
    compile: bool = False,
    trust_files: bool = False,
) -> None:
    """Train and evaluate.

    Args:
        cfg: The whole config; it is not changed.
        amp: Train in mixed precision.
        resume: A checkpoint to go on from, or ``'auto'`` for the latest in the work directory.
        auto_scale_lr: Scale the learning rate to the batch size, by ``auto_scale_lr.base_batch_size``.
        compile: Compile backbone and neck.
        trust_files: Let checkpoints and annotation files run code that they contain.

    Raises:
        RunError: If the run cannot be made, before the model is built.
    """
    with _run(cfg, trust_files) as files, ExitStack() as locked:
        cfg = for_training(cfg, amp, auto_scale_lr)
        if compile:
            check_compile(cfg)
        check_optimizer(cfg)
        check_amp(cfg)
        check_sharding(cfg)
        check_launcher(cfg)
        check_arguments(cfg)
        check_maps(cfg)
        if not resume and cfg.get('resume'):
            resume = cfg.get('load_from') or 'auto'
        cfg, notes = resumed(cfg, resume, files.read) if resume else (cfg, [])
        check_run(cfg, training=True, read=files.read)
        check_work_dir(cfg.work_dir)
        locked.enter_context(only_run(cfg.work_dir))
        runner = _build(with_whole_checkpoints(with_checks(reproducible(cfg))), compile)
        start = cfg.get('load_from')
        # A FlexibleRunner builds its model later.
        if start and not cfg.get('resume') and not is_remote(start) and isinstance(runner.model, torch.nn.Module):
            check_start(runner.model, unwrap(files.read(start)), start)
        for note in notes + [TRUSTED] * trust_files:
            runner.logger.warning(note)
        with without_deprecations(runner.logger):
            runner.train()


def evaluate(
    cfg: Config,
    checkpoint: str,
    out: Optional[str] = None,
    show_dir: Optional[str] = None,
    tta: bool = False,
    compile: bool = False,
    trust_files: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint.

    Args:
        cfg: The whole config; it is not changed.
        checkpoint: File or address of the weights.
        out: A .pkl file for the predictions.
        show_dir: A directory for pictures of the predictions.
        tta: Test-time augmentation, by ``tta_model`` and ``tta_pipeline`` of the config.
        compile: Compile backbone and neck.
        trust_files: Let the checkpoint and annotation files run code that they contain.

    Returns:
        The figures of the evaluators.

    Raises:
        RunError: If the run cannot be made, before the model is built.
    """
    with _run(cfg, trust_files) as files:
        cfg = for_testing(cfg, checkpoint, out, show_dir, tta)
        if compile:
            check_compile(cfg)
        check_launcher(cfg)
        check_arguments(cfg)
        check_maps(cfg)
        check_run(cfg, training=False, read=files.read)
        runner = _build(with_checks(cfg), compile)
        if trust_files:
            runner.logger.warning(TRUSTED)
        if not is_remote(checkpoint):
            check_fit(innermost_model(runner.model), unwrap(files.read(checkpoint)), checkpoint)
        return runner.test()


@contextmanager
def _run(cfg: Config, trust_files: bool) -> Iterator[CheckpointFiles]:
    """What surrounds every run, and leaves the process as it was."""
    kept, logged = borrowed_process(cfg.get('default_scope')), traceback_in_log(cfg.work_dir)
    with kept, logged, reading_without_code(trust_files) as files:
        yield files


def _build(cfg: Config, compile: bool) -> Union[Runner, FlexibleRunner]:
    check_work_dir(cfg.work_dir)
    cfg = with_names_of_its_own(cfg)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        cfg = on_cpu_processes(cfg)
        torch.distributed.init_process_group('gloo')
    runner = RUNNERS.build(cfg)  # MMEngine's Runner, or the config's runner_type
    if compile:
        # Not MMEngine's cfg.compile: it takes the optimizer's step too, where torch 2.14 fails, and nothing in testing.
        model = innermost_model(runner.model)
        for part in (model.backbone, getattr(model, 'neck', None)):
            if part is not None:
                part.compile()
    return runner
