"""Focal loss (Lin et al., 2017), its forward and backward pass."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from .precision import full

_TINY = torch.finfo(torch.float32).tiny


def _weights(weight: Tensor, target: Tensor) -> Tensor:
    """The weight of each target's class, 1 for the background behind the last class, and 1 without weights."""
    if weight.numel() == 0:
        return torch.ones_like(target, dtype=torch.float32)
    return pad(full(weight), (0, 1), value=1.0)[target]


def _is_target(target: Tensor, classes: int) -> Tensor:
    """``(n, classes)``, True at each target's class; the background (``classes``) has none."""
    return one_hot(target, classes + 1)[:, :classes].bool()


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The loss of each class on its own, written into ``output``.

    Args:
        input: ``(n, classes)``, logits.
        target: ``(n,)``, int64; ``classes`` means background.
        weight: ``(classes,)``, a factor for the row of each target; or empty.
        output: ``(n, classes)``.
    """
    p = full(input).sigmoid()
    positive = -alpha * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    negative = -(1 - alpha) * p**gamma * (1 - p).clamp(min=_TINY).log()
    loss = torch.where(_is_target(target, input.shape[1]), positive, negative)
    output.copy_(loss * _weights(weight, target)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of each element's loss, written into ``grad_input`` (n, classes)."""
    p = full(input).sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * p.clamp(min=_TINY).log())
    negative = -(1 - alpha) * p**gamma * (gamma * (1 - p) * (1 - p).clamp(min=_TINY).log() - p)
    grad = torch.where(_is_target(target, input.shape[1]), positive, negative)
    grad_input.copy_(grad * _weights(weight, target)[:, None])


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The loss of each row, written into ``output`` (n,); rows with a negative target have none.

    Args:
        input: ``(n, classes)``, probabilities: mmcv takes the softmax before.
        target: ``(n,)``, int64.
    """
    p = full(input).gather(1, target.clamp(min=0)[:, None])[:, 0]
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=_TINY).log()
    output.copy_(torch.where(target >= 0, loss * _weights(weight, target), torch.zeros_like(loss)))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of each row's loss for its logits, written into ``grad_input``; ``buff`` (n,) gets a factor."""
    probabilities, label = full(input), target.clamp(min=0)
    p = probabilities.gather(1, label[:, None])[:, 0]
    factor = alpha * (gamma * (1 - p) ** (gamma - 1) * p * p.clamp(min=_TINY).log() - (1 - p) ** gamma)
    factor = torch.where(target >= 0, factor * _weights(weight, target), torch.zeros_like(factor))
    buff.copy_(factor)
    grad_input.copy_(factor[:, None] * (one_hot(label, input.shape[1]) - probabilities))
