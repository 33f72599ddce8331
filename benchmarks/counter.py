"""Counts what operations move and launch; on the meta device, which computes nothing, for any device."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Counter(TorchDispatchMode):
    """Counts the operations that are not views, each of which a GPU launches at least one kernel for.

    Attributes:
        bytes: What they read and write, each on its own; caches may hold much of it.
        kernels: How many they are.
    """

    bytes = 0
    kernels = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [x for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
            self.kernels += 1
        return out
