"""The kernels with their gradients: as functions, and as operators for compilers."""

import torch
from torch import Tensor

from ..autograd import Passes
from ..custom_op import register
from . import deformable, local


def _fake(query: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    batch, _, height, width = query.shape
    return torch.empty_like(query), query.new_empty(batch * num_heads, height * width, dtype=torch.float32)


deformable_attention = Passes('deformable_attention_triton', deformable.forward, deformable.backward)
local_attention = Passes('local_attention_triton', local.forward, local.backward)
#: For compilers.
deformable_attention_operator = register(
    deformable_attention,
    'Tensor query, Tensor key, Tensor value, Tensor table, Tensor position, Tensor query_y, Tensor query_x, '
    'int num_heads',
    ('out', 'lse'),
    lambda query, key, value, table, *args: _fake(query, table.shape[0]),
)
local_attention_operator = register(
    local_attention,
    'Tensor query, Tensor key, Tensor value, Tensor table, int num_heads, str pattern, int size, int shift',
    ('out', 'lse'),
    lambda query, key, value, table, *args: _fake(query, table.shape[0]),
)
