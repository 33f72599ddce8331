"""Reading checkpoints of any origin without running code that they may contain."""

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Union

import torch

from mmdat.models.checkpoint import CheckpointError

_ALLOWED = {
    ('collections', 'OrderedDict'): OrderedDict,
    ('torch', 'Size'): torch.Size,
    ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
    ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
}


class _LeftOut:
    """Stands where a checkpoint has an object of any other class or the result of any other function."""

    def __new__(cls, *args: Any, **kwargs: Any) -> '_LeftOut':
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = __call__ = _ignore


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _LeftOut)


def load_weights(path: Union[str, Path]) -> dict[str, Any]:
    """Read the tensors and plain values of a checkpoint.

    MMEngine keeps its own objects beside the weights (logs, the optimizer's state), for which
    ``torch.load(weights_only=True)`` refuses the file, in PyTorch 2.1 without a way to allow them. Nobody but a run
    that is resumed needs them: here they are left out. Nothing but tensors is built and no code of the file is run.

    Args:
        path: A local file.

    Raises:
        CheckpointError: If there is no such file, or it is no checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'there is no checkpoint {path.absolute()}: correct the path')

    def load(file: Any, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()

    plain = SimpleNamespace(Unpickler=_Unpickler, load=load, __name__='mmdat.engine.weights')
    try:
        checkpoint = torch.load(path, map_location='cpu', pickle_module=plain, weights_only=False)
    except Exception as error:
        raise CheckpointError(f'{path} is not a readable PyTorch checkpoint: {error}') from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds no checkpoint (a dict)')
    return checkpoint
