"""What there is no form of here, and what mmcv asks about its compiler."""

from typing import Any, Callable, NoReturn

import torchvision

from .version import __version__


def missing_operator(name: str) -> Callable[..., NoReturn]:
    """A function in the place of an operator that this package does not have.

    Called, it raises ``NotImplementedError`` with the operator's name and the command that compiles mmcv.
    """

    def operator(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name} has no form on torchvision (mmcv-ops-torchvision {__version__}): compile mmcv's "
            f'own operators, in a checkout of mmdat with `bash tools/install.sh --compile-ops`'
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def get_compiler_version() -> str:
    """The line of mmcv's ``collect_env`` that would name the compiler."""
    return f'none (mmcv-ops-torchvision {__version__} on torchvision {torchvision.__version__})'


def get_compiling_cuda_version() -> str:
    """The line of mmcv's ``collect_env`` that would name the CUDA toolkit."""
    return 'none'
