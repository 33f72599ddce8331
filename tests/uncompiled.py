"""mmcv as it is without its compiled operators, also where it has them."""

import os
import shutil
from pathlib import Path

import mmcv

ROOT = Path(__file__).parents[1]
STAND_IN = ROOT / 'mmcv-ops-torchvision'


def paths_without_compiled_operators(directory: Path) -> str:
    """A ``PYTHONPATH`` with a copy of mmcv in ``directory``, the stand-in in the place of its operators, and mmdat."""
    unwanted = shutil.ignore_patterns('_ext.*', '__pycache__', 'csrc')
    shutil.copytree(Path(mmcv.__file__).parent, directory / 'mmcv', ignore=unwanted)
    shutil.copy(STAND_IN / 'mmcv' / '_ext.py', directory / 'mmcv')
    return os.pathsep.join(map(str, (directory, STAND_IN, ROOT)))
