"""The toolbox that a config belongs to: imported in full and without noise, and where types are looked for."""

import importlib
import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Optional

from mmengine.registry import DefaultScope

from mmdat.errors import RunError

TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
# What they say about packages that nothing here needs, as a warning and as a printed line.
_UNASKED = ('faster_coco_eval is not installed', 'Could not import OneDL')


@contextmanager
def toolbox(scope: Optional[str]) -> Iterator[None]:
    """While it lasts, types are looked for in a toolbox.

    Raises:
        RunError: If it is none of MMDetection, MMSegmentation and MMPretrain, or is not installed.
    """
    if scope not in TOOLBOXES:
        raise RunError(f'default_scope of the config must be one of {", ".join(TOOLBOXES)}, got {scope}')
    import_toolbox(scope)
    with DefaultScope.overwrite_default_scope(scope):
        yield


def import_toolbox(scope: Optional[str]) -> None:
    """Import all modules of a toolbox; what is none of the three is left to MMEngine.

    Raises:
        RunError: If it is not installed.
    """
    if scope not in TOOLBOXES:
        return
    if importlib.util.find_spec(scope) is None:
        raise RunError(f'the config is for {scope}, which is not installed: run bash tools/install.sh')
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()) as said:
        for text in _UNASKED:
            warnings.filterwarnings('ignore', text)
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    for line in said.getvalue().splitlines():
        if not line.startswith(_UNASKED):
            print(line)
