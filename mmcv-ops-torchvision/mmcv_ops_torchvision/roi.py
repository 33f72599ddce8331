"""Features of axis-parallel regions of interest ``(index in the batch, x1, y1, x2, y2)``, in pixels of the image."""

import torch
import torchvision
from torch import Tensor

from .missing import missing_operator
from .precision import full, gradients


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of ``input`` (b, c, h, w), written into ``output`` (n, c, aligned_height, aligned_width).

    ``pool_mode`` 1 takes averages; 0, maxima, is not in torchvision.
    """
    if pool_mode != 1:
        missing_operator("roi_align_forward with pool_mode='max'")()
    size = aligned_height, aligned_width
    output.copy_(_align(full(input), rois, size, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient for the input, written into ``grad_input``. Averages are linear, so it does not need the input."""
    size = aligned_height, aligned_width

    def align(features: Tensor) -> Tensor:
        return _align(features, rois, size, spatial_scale, sampling_ratio, aligned)

    grad_input.copy_(gradients(align, [torch.zeros_like(grad_input)], grad_output)[0])


def _align(features: Tensor, rois: Tensor, size: tuple[int, int], scale: float, samples: int, aligned: bool) -> Tensor:
    rois = full(rois).to(features)
    if aligned and samples <= 0:
        # As mmcv does on GPUs: where borders have changed places, as in untrained models, there is nothing to sample.
        # torchvision on CPUs asks for memory of a negative size.
        rois = torch.cat([rois[:, :3], torch.maximum(rois[:, 1:3], rois[:, 3:])], 1)
    return torchvision.ops.roi_align(features, rois, size, scale, samples, aligned)


def _bins(start: Tensor, end: Tensor, count: int, limit: int) -> tuple[list, list]:
    """First and one past the last pixel of ``count`` bins from ``start`` (n,) to ``end``, lists of (n, count)."""
    size = ((end - start) / count)[:, None]
    steps = torch.arange(count + 1, device=start.device, dtype=start.dtype)
    edges = steps * size + start[:, None]
    return (
        edges[:, :-1].floor().clamp(0, limit).long().tolist(),
        edges[:, 1:].ceil().clamp(0, limit).long().tolist(),
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maxima of ``input`` (b, c, h, w) in each bin, and their places in ``h * w``; bins without pixels get 0 and -1.

    torchvision's RoIPool rounds the region to whole pixels first, and so has other bins than mmcv's.
    """
    height, width = input.shape[-2:]
    features, rois = full(input), full(rois)
    output.zero_()
    argmax.fill_(-1)
    x1, y1, x2, y2 = (rois[:, 1:] + rois.new_tensor([0, 0, 1, 1])).mul(spatial_scale).unbind(1)
    left, right = _bins(x1, x2, pooled_width, width)
    top, bottom = _bins(y1, y2, pooled_height, height)
    inside = ((x2 > x1) & (y2 > y1)).tolist()
    for n, batch in enumerate(rois[:, 0].long().tolist()):
        if not inside[n]:
            continue
        for column, (start, end) in enumerate(zip(left[n], right[n])):
            if end <= start:
                continue
            of_rows, x = features[batch, :, :, start:end].max(-1)
            for row, (first, last) in enumerate(zip(top[n], bottom[n])):
                if last <= first:
                    continue
                value, y = of_rows[:, first:last].max(-1)
                y = y + first
                output[n, :, row, column] = value.to(output)
                argmax[n, :, row, column] = (y * width + start + x.gather(1, y[:, None])[:, 0]).to(argmax)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient for the input, written into ``grad_input``: each bin's goes to where its maximum was."""
    total = torch.zeros_like(full(grad_input)).flatten(2)
    chosen = argmax.flatten(2).long()
    source = full(grad_output).flatten(2) * (chosen >= 0)
    places = rois[:, 0].long()[:, None, None], torch.arange(total.shape[1], device=total.device)[:, None]
    total.index_put_((*places, chosen.clamp(min=0)), source.to(total), accumulate=True)
    grad_input.copy_(total.view_as(grad_input))
