"""Errors that users' files and settings cause in the middle of MMEngine, in one sentence."""

import errno
import re
import traceback
from pathlib import Path
from typing import Optional

_PACKAGE = str(Path(__file__).parents[1])
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
