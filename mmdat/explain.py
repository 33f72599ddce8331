"""Sentences for errors of MMEngine and the toolboxes that the user can put right."""

import errno
import importlib.util
import os
import re
import sysconfig
import traceback
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Optional

_OWN = str(Path(__file__).parent)
_PACKAGES = (
    *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch', 'torchvision'),
    *('addict', 'cv2', 'numpy', 'PIL', 'pycocotools', 'transformers', 'yaml'),
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)
_NO_PLACE = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)

# The toolboxes import transformers wherever it is installed, and fail here if they do not know its version.
_OF_TRANSFORMERS = r'/mmpretrain/models/multimodal/|-packages/transformers/'

# What a message has in it, and the sentence; groups of the pattern fill in.
_KNOWN = [
    (r'failed to load image: (\S+)', '{0} is not a readable image: replace it, or take it out of the dataset'),
    (
        r'At least one stride in the given numpy array is negative',
        'an image of the dataset has a side of one pixel, which is lost when images are flipped: take it out',
    ),
    (r"No such file or directory: '([^']+)'", 'there is no file {0}: put it there, or correct what names it'),
    (r'(the image must have at least \d+x\d+ pixels, got \d+x\d+)', '{0}: resize or pad it in the pipeline'),
    (r"(impl='triton' needs .+)", '{0}'),
    (r'(\S+ is not in the [\w: ]+ registry)', 'the config cannot be used, as {0}: correct the type'),
    (
        r"((?:\w+\.)?__init__\(\) got an unexpected keyword argument '\w+')",
        'the config cannot be used, as {0}: correct or remove this argument',
    ),
    (
        r'!buf\.empty\(\)',
        'an image file of the dataset is empty (find DIRECTORY -size 0 lists such files): replace it, or take it out',
    ),
    (
        r'Expected more than 1 value per channel when training, got input size (.+)',
        'a batch norm layer got one value per channel ({0}): set train_dataloader.batch_size to 2 or more, and '
        'drop_last=True where the last batch of an epoch may be smaller',
    ),
    (
        r'If the mean has (\d+) values, the input tensor should in shape of \(\d+, H, W\), but got the tensor with '
        r'shape torch\.Size\(\[(\d+)',
        'images have {1} channels, but data_preprocessor has {0} values of mean and std: set mean, std and '
        'model.backbone.in_channels for {1} channels, or load images as colour images',
    ),
    (
        r'expected input\[\d+, (\d+), \d+, \d+\] to have (\d+) channels, but got \d+ channels',
        'a layer for {1} channels got {0}: set its in_channels to {0}, or let the part in front of it give {1} (for '
        'images, model.backbone.in_channels)',
    ),
    (r'Please run "?(pip install [\w .=-]+)', 'the config needs a package that is not installed: run {0}'),
    # MMEngine puts the classes that it was building in front, outermost first.
    (r'^(?:class `\w+` in \S+: )*class `(\w+)` in \S+: (.+)', 'the config of {0} cannot be used: {1}'),
]


def explain(error: BaseException) -> Optional[str]:
    """A sentence for the user; None for an error that only its traceback can explain.

    None, too, for every error that code of the user's own has a part in, such as a hook, a dataset or a transform: what
    it says may look like one of MMEngine's. Errors of data-loading workers count like those of the process itself.
    ``ValueError`` of this package are sentences already.
    """
    files = [file for part in _chain(error) for file in _files_of(part)]
    if not all(_is_known(file) for file in _below_own_code(files)):
        return None
    if any(re.search(_OF_TRANSFORMERS, Path(file).as_posix()) for file in _files_of(error)):
        return (
            f'transformers {version("transformers")} is of a version that the toolboxes cannot be imported with: pip '
            "install 'transformers<5' (classic stack: 'transformers<4.51'), or pip uninstall transformers"
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        what = error.filename or 'the files of the run'
        return (
            f'{what} cannot be written ({error.strerror}): free some space, and go on from the last whole checkpoint '
            f'with --resume'
        )
    if isinstance(error, OSError) and error.filename and error.errno in _NO_PLACE:
        return f'{error.filename} cannot be opened or made ({error.strerror}): name another place'
    if isinstance(error, OSError) and error.filename and error.errno in _NO_ACCESS:
        return f'{error.filename} cannot be opened ({error.strerror}): change its permissions, or name another place'
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    for pattern, sentence in _KNOWN:
        match = re.search(pattern, text)
        if match:
            return sentence.format(*(group.split('\n')[0].rstrip('. ') for group in match.groups()))
    own = _files_of(error)
    if isinstance(error, ValueError) and own and own[-1].startswith(_OWN):
        return text
    if _is_building(error):
        return f'the config cannot be used ({type(error).__name__}: {_first_line(text)}): correct what it names'
    return None


def _first_line(text: str) -> str:
    return (text.strip() or 'no reason given').split('\n')[0].rstrip('. ')


def _is_building(error: BaseException) -> bool:
    """Whether MMEngine was making something of the config, that is, nothing was trained or tested yet."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    building = any('mmengine' in path.parts and name.startswith('build') for path, name in frames)
    running = any(path.name == 'loops.py' and name in ('run', 'run_epoch', 'run_iter') for path, name in frames)
    return building and not running


def _chain(error: Optional[BaseException]) -> Iterator[BaseException]:
    """An error and those that led to it, the first of them last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _files_of(error: BaseException) -> list[str]:
    """The source files that an error came through, outermost first; of a worker's error those of the worker."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return files + re.findall(r'^\s*File "([^"]+)", line \d+', str(error), re.MULTILINE)


def _below_own_code(files: list[str]) -> list[str]:
    """Without those that called this package, such as a tool, which :mod:`mmdat.cli` runs."""
    own = [i for i, file in enumerate(files) if file.startswith(_OWN) and Path(file).name != 'cli.py']
    return files[own[0] :] if own else []


def _is_known(file: str) -> bool:
    stdlib, *packages = _known_roots()
    if any(file.startswith(root + os.sep) for root in packages):
        return True
    return file.startswith('<') or (file.startswith(stdlib + os.sep) and f'-packages{os.sep}' not in file)


@lru_cache(maxsize=1)
def _known_roots() -> list[str]:
    """The directories of the standard library, of this package and of those that it runs."""
    roots = [sysconfig.get_paths()['stdlib'], _OWN]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            roots += list(spec.submodule_search_locations)
    return roots
