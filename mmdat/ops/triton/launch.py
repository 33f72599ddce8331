"""Running kernels, and the layout that they take."""

import os
from typing import Any, Callable, Optional

import torch
import triton
from torch import Tensor

from .availability import interpreted


def to_pixels(x: Tensor) -> Tensor:
    """A map ``(B, C, H, W)`` as ``(B, H * W, C)``: channels side by side in memory, all pixels equally far apart.

    Of a channels-last map, or some channels of one, that is a view; of others a copy.
    """
    pixels = x.permute(0, 2, 3, 1).flatten(1, 2)
    batch, count, channels = pixels.shape
    between_images, between_pixels, between_channels = pixels.stride()
    apart = count > 1 and between_pixels >= channels and (batch == 1 or between_images == count * between_pixels)
    return pixels if apart and between_channels == 1 else pixels.contiguous()


def pixel_stride(pixels: Tensor) -> int:
    """How far the pixels of :func:`to_pixels` are apart."""
    return pixels.stride(1) if pixels.shape[1] > 1 else pixels.shape[2]


def from_pixels(pixels: Tensor, like: Tensor) -> Tensor:
    """The reverse of :func:`to_pixels`, in the dtype and layout of ``like``."""
    return laid_out(pixels.transpose(1, 2).unflatten(2, like.shape[2:]), like)


def laid_out(x: Tensor, like: Tensor) -> Tensor:
    """``x`` in the dtype and layout that ``empty_like(like)`` has, as compilers are told of gradients."""
    out = torch.empty_like(like)
    same = all(a == b for a, b, length in zip(x.stride(), out.stride(), x.shape) if length > 1)
    return x if same and x.dtype == out.dtype else out.copy_(x)


def padded(channels: int) -> int:
    """Channels of a head as products on tensor cores take them."""
    return max(triton.next_power_of_2(channels), 16)


def precision(x: Tensor) -> dict[str, Any]:
    """The kernels' options for their products: in half precision exact; of float32 by three products of TensorFloat32.

    If the user allows TensorFloat32 for PyTorch's own, one suffices.
    """
    matmul = torch.backends.cuda.matmul
    # From PyTorch 2.9 on, asking in the old way is an error where the new one was used.
    new = hasattr(torch.backends, 'fp32_precision')
    allowed = matmul.fp32_precision == 'tf32' if new else matmul.allow_tf32
    upcast = interpreted() and x.dtype == torch.bfloat16
    return dict(PRECISION='tf32' if allowed else 'tf32x3', UPCAST=upcast)


#: What MMDAT_AUTOTUNE=1 tries: how many warps share a tile, and how many tiles are on their way from memory. Not in
#: float32: on an H100 with Triton 3.6, such settings ended in an illegal memory access (docs/gpu.md).
CANDIDATES = [dict(num_warps=warps, num_stages=stages) for warps in (4, 8) for stages in (1, 2)]
_quickest: dict[Any, dict[str, int]] = {}


def launch(
    kernel: Any, grid: tuple[int, ...], first: Tensor, *args: Any, adds_to: Optional[Tensor] = None, **options: Any
) -> None:
    """Run a kernel for each element of a grid, on the device of its first argument.

    With ``MMDAT_AUTOTUNE=1`` in the environment, the first call of a kernel with settings in half precision, for a
    dtype and its constants, times the :data:`CANDIDATES`, and later calls take the quickest.

    Args:
        kernel: The kernel.
        grid: How many programs, along up to three axes.
        first, args: Its arguments.
        adds_to: The one, zero at first, that the kernel adds to, where it does not just write.
        options: Its constants, and for kernels with settings ``num_warps`` and ``num_stages``.
    """

    def run(**others: int) -> None:
        kernel[grid](first, *args, **{**options, **others})

    with torch.cuda.device_of(first):
        chosen = {}
        tuned = 'num_warps' in options and first.dtype != torch.float32
        if tuned and os.environ.get('MMDAT_AUTOTUNE') == '1':
            case = kernel, first.dtype, first.device, *options.items()
            if case not in _quickest:
                _quickest[case] = _time_candidates(run)
                if adds_to is not None:
                    adds_to.zero_()
            chosen = _quickest[case]
        run(**chosen)


def _time_candidates(run: Callable[..., None]) -> dict[str, int]:
    """The quickest of the candidates that the processor has registers and shared memory for."""
    times = []
    for candidate in CANDIDATES:
        try:
            times.append(triton.testing.do_bench(lambda candidate=candidate: run(**candidate)))
        except triton.OutOfResources:
            times.append(float('inf'))
    return CANDIDATES[times.index(min(times))]
