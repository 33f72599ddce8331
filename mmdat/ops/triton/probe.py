"""The smallest kernel, which shows whether Triton can compile and run one."""

import triton


@triton.jit
def empty_kernel():
    """Do nothing."""
    return
