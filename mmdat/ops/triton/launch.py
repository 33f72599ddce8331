"""Running kernels, and the layout that they take."""

import os
import subprocess
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from .availability import interpreted


def to_rows(x: Tensor, num_heads: int) -> Tensor:
    """A map ``(B, C, H, W)`` as ``(B * heads, H * W, D)``, its channels padded with zeros to a power of two.

    One copy, after which a kernel loads whole rows, whatever the layout of the map.
    """
    x = x.flatten(2).unflatten(1, (num_heads, -1)).transpose(2, 3).flatten(0, 1)
    padding = max(triton.next_power_of_2(x.shape[2]), 16) - x.shape[2]
    return F.pad(x, (0, padding)) if padding else x.contiguous()


def from_rows(rows: Tensor, num_heads: int, like: Tensor) -> Tensor:
    """The reverse of :func:`to_rows`, in the dtype and layout of ``like``."""
    out = torch.empty_like(like)
    by_head = out.unflatten(1, (num_heads, -1))
    by_head.copy_(rows[..., : by_head.shape[2]].transpose(1, 2).reshape(by_head.shape))
    return out


def precision(rows: Tensor) -> dict[str, Any]:
    """The kernels' options for their products: in half precision exact; of float32 by three products of TensorFloat32.

    If the user allows TensorFloat32 (``torch.backends.cuda.matmul.allow_tf32``), one suffices.
    """
    allowed = rows.is_cuda and torch.backends.cuda.matmul.allow_tf32
    upcast = interpreted() and rows.dtype == torch.bfloat16
    return dict(PRECISION='tf32' if allowed else 'tf32x3', UPCAST=upcast)


#: What MMDAT_AUTOTUNE=1 tries: how many warps share a tile, and how many tiles are on their way from memory.
CANDIDATES = [dict(num_warps=warps, num_stages=stages) for warps in (4, 8) for stages in (1, 2, 3)]
_quickest: dict[Any, dict[str, int]] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, adds_to: Optional[Tensor] = None, **options: Any
) -> None:
    """Run a kernel for each element of a grid, on the device of its first argument.

    With ``MMDAT_AUTOTUNE=1`` in the environment, the first call of a kernel for a dtype and its constants times the
    :data:`CANDIDATES`, and later calls take the quickest.

    Args:
        kernel: The kernel.
        grid: How many programs, along up to three axes.
        first, args: Its arguments.
        adds_to: The one, zero at first, that the kernel adds to, where it does not just write.
        options: Its constants, ``num_warps`` and ``num_stages``.

    Raises:
        RuntimeError: If Triton cannot build what starts its kernels.
    """

    def run(**others: int) -> None:
        kernel[grid](first, *args, **{**options, **others})

    with torch.cuda.device_of(first):
        try:
            chosen = {}
            if os.environ.get('MMDAT_AUTOTUNE') == '1':
                case = kernel, first.dtype, first.device, *options.items()
                if case not in _quickest:
                    _quickest[case] = _time_candidates(run)
                    if adds_to is not None:
                        adds_to.zero_()
                chosen = _quickest[case]
            run(**chosen)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise RuntimeError(
                "impl='triton' compiles when it first runs, which needs a C compiler and Python's headers (Debian: "
                f"gcc, python3-dev); impl='fast' needs none: {error}"
            ) from error


def _time_candidates(run: Callable[..., None]) -> dict[str, int]:
    """The quickest of the candidates that the processor has registers and shared memory for."""
    times = []
    for candidate in CANDIDATES:
        try:
            times.append(triton.testing.do_bench(lambda candidate=candidate: run(**candidate)))
        except triton.OutOfResources:
            times.append(float('inf'))
    return CANDIDATES[times.index(min(times))]
