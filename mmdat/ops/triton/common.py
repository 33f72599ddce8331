"""What kernels share."""

import triton
import triton.language as tl

#: Scores are in units of log 2, for the processors have an instruction for 2**x.
LOG2E: float = 1.4426950408889634
LN2: float = 0.6931471805599453


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """Matrix product with float32 sums.

    UPCAST is for the interpreter, whose product of bfloat16 is wrong.
    """
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def of_head(base, head, heads, pixels, stride, CHANNELS: tl.constexpr):
    """Pointer to a head's channels of the first of an image's pixels, which are ``stride`` apart.

    ``head`` counts the heads of all images, and is of 64 bits.
    """
    return base + head // heads * pixels * stride + head % heads * CHANNELS


@triton.jit
def load_rows(base, rows, limit, stride, CHANNELS: tl.constexpr, D: tl.constexpr):
    """Channels of pixels ``(rows, D)``, zeros from pixel ``limit`` and channel CHANNELS on."""
    channels = tl.arange(0, D)[None, :]
    there = rows[:, None] < limit
    if CHANNELS < D:
        there = there & (channels < CHANNELS)
    return tl.load(base + rows[:, None] * stride + channels, mask=there, other=0.0)


@triton.jit
def store_rows(base, rows, limit, stride, values, CHANNELS: tl.constexpr, D: tl.constexpr):
    """The reverse of :func:`load_rows`."""
    channels = tl.arange(0, D)[None, :]
    there = rows[:, None] < limit
    if CHANNELS < D:
        there = there & (channels < CHANNELS)
    tl.store(base + rows[:, None] * stride + channels, values.to(base.dtype.element_ty), mask=there)


@triton.jit
def finite_maximum(top):
    """Something that can be subtracted from scores whose maximum is ``top`` without making NaN of -inf."""
    return tl.where(top == float('-inf'), 0.0, top)
