"""Multi-scale deformable attention (Deformable DETR, Zhu et al., 2021)."""

from torch import Tensor
from torch.nn.functional import grid_sample

from .precision import full, gradients


def _attend(value: Tensor, locations: Tensor, weights: Tensor, shapes: list) -> Tensor:
    batch, _, heads, channels = value.shape
    queries, levels, points = weights.shape[1], *weights.shape[-2:]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([height * width for height, width in shapes], dim=-1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (batch * heads, queries, levels, points, 2)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels, points)
    output = value.new_zeros(batch * heads, channels, queries)
    for level, (height, width) in enumerate(shapes):
        level_map = maps[level].unflatten(-1, (height, width))
        samples = grid_sample(level_map, grids[:, :, level], align_corners=False)
        output = output + (samples * weights[:, :, :, level]).sum(-1)
    return output.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).flatten(2)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums of bilinear samples.

    Args:
        value: ``(batch, keys, heads, channels)``, the levels' pixels one after another.
        value_spatial_shapes: ``(levels, 2)``, height and width.
        value_level_start_index: Not needed, nor is ``im2col_step``.
        sampling_locations: ``(batch, queries, heads, levels, points, 2)``, x and y from 0 to 1.
        attention_weights: ``(batch, queries, heads, levels, points)``.

    Returns:
        ``(batch, queries, heads * channels)``.
    """
    inputs = full(value), full(sampling_locations), full(attention_weights)
    return _attend(*inputs, value_spatial_shapes.tolist()).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """The gradients of value, locations and weights, written into the tensors for them."""
    shapes = value_spatial_shapes.tolist()
    inputs = value, sampling_locations, attention_weights
    grads = gradients(lambda *tensors: _attend(*tensors, shapes), inputs, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.copy_(grad)
