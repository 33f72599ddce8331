"""Which implementation of an operator runs, and why.

Every operator has a table of its implementations (``IMPLEMENTATIONS`` in its ``interface.py``), which all take the same
arguments, and a function that chooses one of them, such as :func:`mmdat.ops.choose_deformable_attention`.
"""

import logging
from functools import lru_cache
from typing import NamedTuple

import torch

from mmdat.compat import is_compiling

#: What a user may ask for: the quickest form for device and size that fits, the specification, the form that holds
#: a part of the scores at a time, whatever the size, or fused kernels for NVIDIA GPUs (docs/gpu.md).
IMPLEMENTATIONS = ('fast', 'naive', 'tiled', 'triton')

_logger = logging.getLogger('mmdat')


class Choice(NamedTuple):
    """An implementation of an operator, and why it is taken.

    Attributes:
        implementation: Its name in the operator's table.
        reason: A clause, such as "it was asked for".
    """

    implementation: str
    reason: str


def check_implementation(impl: str) -> None:
    """Raise a ValueError, which names the values there are, for an unknown ``impl``."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {IMPLEMENTATIONS}, got '{impl}'")


def log_choice(operator: str, device: torch.device, choice: Choice) -> None:
    """Log, once in a process, what an operator runs on a kind of device and why, to the logger ``mmdat``."""
    if not is_compiling():  # a compiler would break its graph here
        _log_once(operator, device.type, choice)


@lru_cache(maxsize=64)
def _log_once(operator: str, device: str, choice: Choice) -> None:
    _logger.info('%s on %s runs its %s form: %s', operator, device, choice.implementation, choice.reason)


def no_autocast(device: torch.device) -> torch.autocast:
    """The fast forms choose their precision themselves."""
    # autocast does not know the meta device.
    return torch.autocast('cpu' if device.type == 'meta' else device.type, enabled=False)
