"""From a config or the name of an architecture to a module that can be exported: tensors in, tensors out."""

from typing import Optional, Union

import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import Tensor

from mmdat.apis import build_model, load_backbone
from mmdat.checkpoints.schemes import read_checkpoint
from mmdat.config.load import load_config
from mmdat.errors import CheckpointError, RunError
from mmdat.models import DAT, DeformableAttention, NeighborhoodAttention, WindowAttention
from mmdat.models.arch import ARCHS
from mmdat.models.checkpoint import unwrap


class Backbone(nn.Module):
    """A backbone: ``(B, 3, H, W)`` to its maps."""

    def __init__(self, backbone: DAT):
        super().__init__()
        self.backbone = backbone
        self.outputs = tuple(f'map{i}' for i in backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(image))


class Classifier(nn.Module):
    """An mmpretrain classifier: ``(B, 3, H, W)`` to probabilities ``(B, classes)``."""

    outputs = ('scores',)

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(image).softmax(-1)


class Segmentor(nn.Module):
    """An mmseg segmentor: ``(B, 3, H, W)`` to logits of that size, ``(B, classes, H, W)``."""

    outputs = ('logits',)

    def __init__(self, segmentor: nn.Module):
        super().__init__()
        self.segmentor = segmentor

    def forward(self, image: Tensor) -> Tensor:
        return self.segmentor.encode_decode(image, [dict(img_shape=(image.shape[2], image.shape[3]))])


class AveragePool(nn.Module):
    """What :class:`torch.nn.AdaptiveAvgPool2d` computes, as products with matrices of weights.

    PyTorch's exporter unrolls that module for the size of the example, so it would be wrong at other sizes.

    Args:
        output_size: Rows and columns of the output.
    """

    def __init__(self, output_size: int):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, output_size, output_size)``."""
        rows, cols = [self._weights(side, x) for side in x.shape[2:]]
        return rows @ x @ cols.t()

    def _weights(self, side: int, like: Tensor) -> Tensor:
        """The share of each pixel in each mean along one axis, ``(output_size, side)``."""
        cell = torch.arange(self.output_size, device=like.device)[:, None]
        first, last = cell * side // self.output_size, ((cell + 1) * side - 1) // self.output_size
        pixel = torch.arange(side, device=like.device)
        return ((pixel >= first) & (pixel <= last)).to(like.dtype) / (last - first + 1)


def load_model(source: Union[str, Config], checkpoint: Optional[str] = None, whole: bool = False) -> nn.Module:
    """A model that can be exported, in eval mode and of plain operations.

    Args:
        source: The name of an architecture, a config file or a config.
        checkpoint: The weights; by default those of the backbone's ``init_cfg``, or untrained ones.
        whole: The whole model in place of its backbone.

    Returns:
        A module whose ``outputs`` are the names of what it returns.

    Raises:
        RunError: If there is no such model, or it cannot be exported whole.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    if isinstance(source, str) and source in ARCHS:
        if whole:
            raise RunError(f'--whole exports the model of a config, but {source} is a backbone by itself')
        backbone = DAT(source)
        if checkpoint:
            backbone.load_state_dict(unwrap(read_checkpoint(checkpoint)))
        model: nn.Module = Backbone(backbone)
    else:
        cfg = load_config(source) if isinstance(source, str) else source
        model = _load_whole(cfg, checkpoint) if whole else Backbone(load_backbone(cfg, checkpoint)[0])
    for module in model.modules():
        if isinstance(module, (DeformableAttention, NeighborhoodAttention, WindowAttention)):
            module.impl = 'naive'  # the fast forms are operators of our own, which ONNX does not know
        if isinstance(module, DeformableAttention):
            module.sampler = 'torch'
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and isinstance(child.output_size, int):
                setattr(module, name, AveragePool(child.output_size))
    return model.eval().requires_grad_(False)


def _load_whole(cfg: Config, checkpoint: Optional[str]) -> nn.Module:
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise RunError(f'--whole works with default_scope mmdet, mmseg and mmpretrain, but the config has {scope}')
    model = revert_sync_batchnorm(build_model(cfg))
    if checkpoint:
        missing = model.load_state_dict(unwrap(read_checkpoint(checkpoint)), strict=False).missing_keys
        if missing:
            raise CheckpointError(
                f'{checkpoint} lacks weights of the model, such as {missing[0]}: choose a checkpoint of this config'
            )
    if scope == 'mmdet':
        from .detectors import detector

        return detector(model.eval())
    return Segmentor(model) if scope == 'mmseg' else Classifier(model)
