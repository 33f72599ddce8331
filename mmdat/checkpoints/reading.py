"""Reading checkpoints and other pickles of any origin without running code that they may contain.

A pickle names functions and classes, which reading it calls. Here it gets none but those of a short list: tensors, and
the numbers, arrays and logs that MMEngine keeps beside them. ``torch.load(weights_only=True)`` does not serve: it
refuses what MMEngine saves, before PyTorch 2.6 it has a hole (TorchScript archives, CVE-2025-32434), and
before 2.5 its list cannot be extended. NumPy's own functions are not on the list either: with a forged dtype they
read memory that is not the array's.
"""

import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Optional, Union

import numpy as np
import torch

from mmdat.errors import CheckpointError

from .forged import Settling, check_no_tar, check_opcodes, check_zip

_FORCE_WEIGHTS_ONLY = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'


class _LeftOut:
    """Stands where a pickle has an object of any other class or the result of any other function."""

    def __new__(cls, *args: Any, **kwargs: Any) -> '_LeftOut':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = __call__ = _ignore


class _DType:
    """A pickled numpy dtype, of numbers only."""

    def __init__(self, code: str, *args: Any):
        self.value = np.dtype(code)
        if self.value.kind not in 'biufc':
            raise pickle.UnpicklingError(f'an array of dtype {code}, which is not of numbers')

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ('<', '>'):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """A pickled numpy array, until the array is put in its place."""

    def __init__(self, *args: Any):
        self.value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.value = np.frombuffer(data, dtype.value).reshape(shape, order='F' if fortran else 'C').copy('K')


class _History:
    """A pickled log of MMEngine, likewise. Its list of functions for statistics is that of the class."""

    value: Any = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        from mmengine.logging import HistoryBuffer  # which files of plain PyTorch have none of

        logs, counts = (state[key].value for key in ('_log_history', '_count_history'))
        self.value = HistoryBuffer(logs, counts, state['max_length'])


def _scalar(dtype: _DType, data: bytes) -> Any:
    return np.frombuffer(data, dtype.value, count=1)[0]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode('latin1')  # how old pickle protocols write bytes


def _plain_tensor(rebuild: Any, kind: Any, args: tuple, attributes: Any) -> Any:
    return rebuild(*args)  # attributes of Python's, as FSDP puts on tensors, are left out


_ALLOWED = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('builtins', 'set'): set,
    ('builtins', 'getattr'): _LeftOut,  # how a log's functions are written
    ('torch', 'Size'): torch.Size,
    ('torch', 'Tensor'): _LeftOut,  # the class is named where a tensor has attributes
    ('torch._tensor', '_rebuild_from_type_v2'): _plain_tensor,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
    ('mmengine.logging.history_buffer', 'HistoryBuffer'): _History,
    ('numpy', 'dtype'): _DType,
    ('numpy', 'ndarray'): _LeftOut,
    ('numpy.core.multiarray', 'scalar'): _scalar,
    ('numpy.core.multiarray', '_reconstruct'): _Array,
    ('_codecs', 'encode'): _encode,
}
_OLD_NAMES = {'__builtin__': 'builtins', 'numpy._core.multiarray': 'numpy.core.multiarray'}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, **kwargs: Any):
        check_opcodes(file)
        super().__init__(file, **kwargs)

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((_OLD_NAMES.get(module, module), name)) or self.missing(module, name)

    def missing(self, module: str, name: str) -> Any:
        return _LeftOut


class _StrictUnpickler(_Unpickler):
    def missing(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f'{module}.{name}, and making one could run code of the file')


def _value(node: Any) -> Any:
    return node.value if isinstance(node, (_Array, _History)) else node


def load_pickle(file: BinaryIO, **kwargs: Any) -> Any:
    """Read a pickle of plain values and arrays of numbers.

    Raises:
        pickle.UnpicklingError: If it holds anything else; says what.
    """
    return Settling(_value)(_StrictUnpickler(file, **kwargs).load())


def load_weights(path: Union[str, Path], everything: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running code of the file.

    Objects of classes other than those that MMEngine saves by itself are left out. Nobody but a run that is resumed
    could need them.

    Args:
        path: A local file, of PyTorch or, by its suffix, of safetensors.
        everything: Refuse the file if something would be left out.

    Raises:
        CheckpointError: If there is no such file, or it is no checkpoint, or not all of it can be read.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path.absolute()}: correct the path')
    if path.suffix == '.safetensors':
        return _load_safetensors(path)
    try:
        with path.open('rb') as file:
            checkpoint = Settling(_value)(_load(file, _StrictUnpickler if everything else _Unpickler))
    except pickle.UnpicklingError as error:
        if not everything or 'run code' not in str(error):
            raise _unreadable(path, error) from error
        raise CheckpointError(
            f'{path} holds {error}: it can only be a start, with load_from, and not be resumed'
        ) from error
    except Exception as error:  # of damaged files, PyTorch raises many kinds
        raise _unreadable(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds no checkpoint, but a {type(checkpoint).__name__}: choose another file')
    if isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)  # text that MMEngine would run as Python when it resumes
    return checkpoint


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CheckpointError(f'reading {path} needs the package safetensors: pip install safetensors') from error
    try:
        with safe_open(path, framework='pt') as file:
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is not a dict
            return dict(state_dict=state_dict, meta=dict(file.metadata() or {}))
    except SafetensorError as error:
        raise CheckpointError(f'{path} is not a readable safetensors file ({error}): choose another file') from error


def _load(file: BinaryIO, unpickler: type) -> Any:
    zipped = file.read(4) == b'PK\x03\x04'
    file.seek(0)
    records = torch._C.PyTorchFileReader(file).get_all_records() if zipped else []
    if 'constants.pkl' in records:
        # torch.load would hand it to torch.jit.load, which runs functions of the archive.
        raise ValueError('it is a TorchScript archive')
    check_zip(file, records) if zipped else check_no_tar(file)
    file.seek(0)

    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return unpickler(file, **kwargs).load()

    plain = SimpleNamespace(Unpickler=unpickler, load=load, __name__='mmdat.checkpoints.reading')
    with _environment(_FORCE_WEIGHTS_ONLY, None):  # which allows no unpickler but PyTorch's
        return torch.load(file, map_location='cpu', pickle_module=plain, weights_only=False)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error) or type(error).__name__).split('\n')[0].split('. ')[0].rstrip('.')
    return CheckpointError(f'{path} is not a readable PyTorch checkpoint ({reason}): choose another file')


@contextmanager
def _environment(name: str, value: Optional[str]) -> Iterator[None]:
    """Set or, with None, unset a variable of the environment for a while."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextmanager
def torch_loads_weights_only() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code wherever others call it."""
    with _environment(_FORCE_WEIGHTS_ONLY, '1'):
        yield
