"""The process that a run borrows: what it sets there is put back, and a fault of it is kept in its log."""

import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import cv2
import torch
import torch.distributed
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

from .toolbox import import_toolbox

# MMEngine warns of what its own checkpoint hook calls.
_NOT_FOR_USERS = ('"FileClient" will be deprecated', '"HardDiskBackend" is the alias')


@contextmanager
def borrowed_process(scope: Optional[str]) -> Iterator[None]:
    """While it lasts, types are looked for in a toolbox; afterwards the process is as MMEngine's Runner found it.

    Put back are the environment, the default scope, the switches of cuDNN, the choice of deterministic operations, the
    start method of processes and OpenCV's number of threads. A process group that a run made ends with it, unless the
    run failed: others that still wait for an answer would keep this process waiting, too.
    """
    environment = dict(os.environ)
    cudnn = torch.backends.cudnn
    switches = cudnn.benchmark, cudnn.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    start_method, threads = multiprocessing.get_start_method(allow_none=True), cv2.getNumThreads()
    connected = _is_connected()
    try:
        import_toolbox(scope)
        with DefaultScope.overwrite_default_scope(scope):
            yield
        if _is_connected() and not connected:
            torch.distributed.destroy_process_group()
    finally:
        cv2.setNumThreads(threads)
        multiprocessing.set_start_method(start_method, force=True)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        cudnn.benchmark, cudnn.deterministic = switches
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def _is_connected() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def without_deprecations(logger: MMLogger) -> Iterator[None]:
    """While it lasts, MMEngine does not warn of itself."""

    def is_for_users(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_NOT_FOR_USERS)

    logger.addFilter(is_for_users)
    try:
        yield
    finally:
        logger.removeFilter(is_for_users)


@contextmanager
def traceback_in_log(work_dir: str) -> Iterator[None]:
    """Write the traceback of an error into the log of the run that it ends; ``error.log_file`` becomes the file's name.

    Without a run, that is, before MMEngine has begun a log, nothing is written. Processes other than the first, which
    have no log, write ``error_rank{n}.log`` into the work directory.
    """
    before = MMLogger.get_current_instance()
    try:
        yield
    except Exception as error:
        logger = MMLogger.get_current_instance()
        if logger is not before:
            error.log_file = _log_traceback(logger, work_dir)
        raise


def _log_traceback(logger: MMLogger, work_dir: str) -> str:
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    if not files:
        files = [logging.FileHandler(Path(work_dir, f'error_rank{get_rank()}.log'))]
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, 'The run ended here.', (), sys.exc_info())
    for file in files:
        file.handle(record)
    return files[0].baseFilename
