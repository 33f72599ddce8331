"""What the command-line tools share: options, and one sentence for a fault that the user can put right."""

import argparse
import errno
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import Config, DictAction

from mmdat.config.load import load_config
from mmdat.errors import CheckpointError, RunError

_PACKAGE = str(Path(__file__).parent)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# What a message has in it, and the sentence; groups of the pattern fill in.
_KNOWN = [
    (r'failed to load image: (\S+)', '{0} is not a readable image: replace it, or take it out of the dataset'),
    (r"No such file or directory: '([^']+)'", 'there is no file {0}: put it there, or correct what names it'),
    (r'(the image must have at least \d+x\d+ pixels, got \d+x\d+)', '{0}: resize or pad it in the pipeline'),
    (r'(\S+ is not in the \S+ registry)', 'the config cannot be used, as {0}: correct the type'),
    (
        r"((?:\w+\.)?__init__\(\) got an unexpected keyword argument '\w+')",
        'the config cannot be used, as {0}: correct or remove this argument',
    ),
    (
        r'!buf\.empty\(\)',
        'an image file of the dataset is empty (find DIRECTORY -size 0 lists such files): replace it, or take it out',
    ),
    # MMEngine puts the classes that it was building in front, outermost first.
    (r'^(?:class `\w+` in \S+: )*class `(\w+)` in \S+: (.+)', 'the config of {0} cannot be used: {1}'),
]


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that training and testing share."""
    parser.add_argument('--work-dir', help='where logs, checkpoints and pictures go (default: work_dirs/CONFIG)')
    parser.add_argument(
        '--override',
        metavar='FILE',
        help='a config file merged over CONFIG; num_classes at its top level replaces every num_classes of the model',
    )
    parser.add_argument(
        '--data', metavar='DIR', help='the directory of your data, for --override configs/own_data/… (its data_root)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        type=key_value,
        metavar='KEY=VALUE',
        help='entries of the config to change, such as train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--compile',
        action='store_true',
        help='compile backbone and neck with torch.compile (the first step takes minutes)',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def key_value(text: str) -> str:
    """The type of ``--cfg-options``: MMEngine's action takes for granted that there is a ``=``."""
    if '=' not in text:
        raise argparse.ArgumentTypeError(f'{text!r} is not KEY=VALUE, such as train_dataloader.batch_size=4')
    return text


def config_of(args: argparse.Namespace) -> Config:
    """The config that a command line with :func:`add_common_options` names."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return load_config(args.config, args.override, args.cfg_options, args.data, args.work_dir, args.launcher)


def run(main: Callable[[], Any]) -> None:
    """Run a script's main function; a fault that the user can put right ends it with one sentence."""
    try:
        main()
    except Exception as error:
        sentence = str(error) if isinstance(error, (RunError, CheckpointError)) else explain(error)
        if sentence is None:
            raise
        if os.environ.get('RANK', '0') == '0':  # once, not from every process
            print(f'{Path(sys.argv[0]).name}: {sentence}', file=sys.stderr)
        sys.exit(1)


def explain(error: BaseException) -> Optional[str]:
    """A sentence for the user; None for an error that only its traceback can explain.

    Errors of data-loading workers count like those of the process itself. ``ValueError`` of this package are sentences
    already.
    """
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        what = error.filename or 'the files of the run'
        return (
            f'{what} cannot be written ({error.strerror}): free some space, and go on from the last whole checkpoint '
            f'with --resume'
        )
    if isinstance(error, OSError) and error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f'{error.filename} cannot be opened ({error.strerror}): change its permissions, or name another place'
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    for pattern, sentence in _KNOWN:
        match = re.search(pattern, text)
        if match:
            return sentence.format(*(group.split('\n')[0].rstrip('. ') for group in match.groups()))
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError) and frames and frames[-1].filename.startswith(_PACKAGE):
        return text
    return None
