"""What the command-line tools share: options, and one sentence for a fault that the user can put right.

Nothing heavy is imported before the options are read, so that ``--help`` and mistyped options answer at once.
"""

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from mmdat.errors import CheckpointError, RunError
from mmdat.explain import explain

if TYPE_CHECKING:
    from mmengine.config import Config

#: Set to 1, it makes the tools print the traceback in front of the sentence.
TRACEBACK = 'MMDAT_TRACEBACK'


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser that shows a tool's docstring as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """The options that change a config."""
    parser.add_argument(
        '--override',
        metavar='FILE',
        help='a config file merged over CONFIG; num_classes at its top level replaces every num_classes of the model',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        type=key_value,
        metavar='KEY=VALUE',
        help='entries of the config to change, such as train_dataloader.batch_size=4',
    )


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """The option that lets files run code."""
    parser.add_argument(
        '--trust-files',
        action='store_true',
        help='read checkpoints and annotations with all their objects, which can run code in them: own files only',
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that training and testing share."""
    parser.add_argument('--work-dir', help='where logs, checkpoints and pictures go (default: work_dirs/CONFIG)')
    add_config_options(parser)
    parser.add_argument(
        '--data', metavar='DIR', help='the directory of your data, for --override configs/own_data/… (its data_root)'
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone and neck with torch.compile (the first step takes minutes)',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    add_trust_option(parser)


def key_value(text: str) -> str:
    """The type of ``--cfg-options``: MMEngine's action takes for granted that there is a ``=``."""
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE, such as train_dataloader.batch_size=4')
    return text


def read_config(
    path: str,
    override: Optional[str] = None,
    cfg_options: Optional[list[str]] = None,
    data: Optional[str] = None,
    work_dir: Optional[str] = None,
    launcher: str = 'none',
    val_fraction: Optional[float] = None,
) -> 'Config':
    """The config that a command line names; ``cfg_options`` are texts such as ``model.head.num_classes=4``."""
    from mmdat.config.load import load_config

    return load_config(path, override, read_options(cfg_options), data, work_dir, launcher, val_fraction)


def read_options(cfg_options: Optional[list[str]]) -> Optional[dict[str, Any]]:
    """The values of ``--cfg-options``, such as ``{'model.head.num_classes': 4}``."""
    if not cfg_options:
        return None
    from mmengine.config import DictAction

    reader = argparse.ArgumentParser(prog=Path(sys.argv[0]).name)
    reader.add_argument('--cfg-options', nargs='+', action=DictAction)
    try:
        return reader.parse_args(['--cfg-options', *cfg_options]).cfg_options
    except (RecursionError, AssertionError, ValueError) as error:  # MMEngine's reader of lists, met with other brackets
        raise RunError(
            f'--cfg-options {" ".join(cfg_options)[:200]} cannot be read: write lists as [1,2], and entries of dicts '
            f'as KEY.ENTRY=VALUE'
        ) from error


def run(main: Callable[[], Any]) -> None:
    """Run a script's main function; a fault that the user can put right ends it with one sentence."""
    try:
        main()
    except Exception as error:
        known = isinstance(error, (RunError, CheckpointError))
        sentence = str(error) if known else explain(error)
        if sentence is None:
            raise
        if os.environ.get(TRACEBACK) == '1':
            traceback.print_exc()
        log_file = getattr(error, 'log_file', None)
        if log_file:
            sentence += f' (the traceback is in {os.path.relpath(log_file)})'
        # What is found before a run begins is the same in all processes, and said once.
        rank = os.environ.get('RANK', '0')
        if rank == '0' or log_file:
            print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
        sys.exit(1)
