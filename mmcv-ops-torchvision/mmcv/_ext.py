"""The module that ``mmcv.ops`` loads its operators from, where mmcv was installed without compiled ones.

Python prefers a compiled ``_ext.cpython-….so`` in the same directory to this file, which so steps aside by itself.
"""

from typing import Callable

from mmcv_ops_torchvision import *  # noqa: F403
from mmcv_ops_torchvision import missing_operator


def __getattr__(name: str) -> Callable:
    """Any other operator: it can be imported, as ``mmcv.ops`` imports all of them, and says what to do when called."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return missing_operator(name)
