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
def load_rows(base, rows, limit, D: tl.constexpr):
    """Rows of a matrix ``(limit, D)``, zeros beyond its end."""
    return tl.load(base + rows[:, None] * D + tl.arange(0, D)[None, :], mask=rows[:, None] < limit, other=0.0)


@triton.jit
def store_rows(base, rows, limit, values, D: tl.constexpr):
    """The reverse of :func:`load_rows`."""
    pointers = base + rows[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=rows[:, None] < limit)


@triton.jit
def finite_maximum(top):
    """Something that can be subtracted from scores whose maximum is ``top`` without making NaN of -inf."""
    return tl.where(top == float('-inf'), 0.0, top)
