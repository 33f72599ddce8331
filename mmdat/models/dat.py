"""The DAT and DAT++ backbones."""

from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmdat.compat import BaseModule
from mmdat.weights import Weights

from .arch import NUM_STAGES, Arch, get_arch
from .checkpoint import TABLE, adapt_state_dict
from .layers import MLP, DropPath, channelwise, depthwise_conv, make_downsample, make_stem
from .mixers import DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention

MIN_SIZE = 32


class DAT(BaseModule):
    """Vision Transformer with Deformable Attention: DAT, DAT+ and DAT++.

    `DAT <https://arxiv.org/abs/2201.00520>`_ alternates window attention with deformable attention in
    its last two stages. `DAT++ <https://arxiv.org/abs/2309.01430>`_ uses neighbourhood attention and
    deformable attention in all four, with overlapping convolutions between the stages, convolutions in
    the MLPs and local perception units (depthwise convolutions in front of every block). DAT+ is DAT++ without these
    convolutions.

    Weights start as in the released code: PyTorch's defaults, and truncated normal for the tables.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'`` (DAT), ``'tiny+'`` (DAT+), ``'tiny++'``, ``'small++'``, ``'base++'``
            (DAT++), or a dict for :meth:`mmdat.models.arch.Arch.from_dict`.
        img_size: Image size, one number or (height, width), that the position-bias tables are made for.
            Any other input size works too; the tables keep their size.
        in_channels: Channels of the image. Weights for RGB are adapted to other numbers when they are loaded.
        window_size: Side of the windows of L and S, and of the neighbourhoods of N.
        out_indices: Stages whose maps are returned, in this order, or one stage; -1 is the last.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 over all blocks.
        drop_rate: Dropout in the MLPs and after the mixers.
        attn_drop_rate: Dropout of attention weights.
        frozen_stages: As in mmdet's Swin: -1 freezes nothing, 0 the stem, n the stem and the first n
            stages with the downsampling behind them. Frozen parts also stay in eval mode.
        with_cp: Recompute each block in the backward pass, to save memory.
        out_norm: Put a LayerNorm, ``norm{i}``, on each returned map.
        as_tuple: With False, return the one map of ``out_indices`` itself, as recognisers of mmaction2 and mmocr
            expect, in place of a tuple with it.
        sampler: How D samples, ``'torch'`` or ``'mmcv'``; see :func:`mmdat.ops.deform_sample`.
        attn_impl: How the mixers attend: ``'fast'``, whichever of the others suits device and size, ``'naive'``,
            ``'tiled'`` or ``'triton'`` (fused kernels for NVIDIA GPUs; see docs/gpu.md). All give the same numbers, but
            the naive form needs memory for all scores at once. It consists of ordinary PyTorch operations and can be
            differentiated twice (deformable attention where ``grid_sample`` can: on CPUs, with PyTorch 2.14).
        init_cfg: MMEngine's initialisation; needs MMEngine. ``dict(type='Pretrained', checkpoint=...)`` takes official
            checkpoints as they are.

    Attributes:
        arch: The checked architecture, an :class:`mmdat.models.arch.Arch`.
        feature_info: For each returned map, in the manner of timm: ``index`` of the stage, ``num_chs`` channels,
            ``reduction`` (input pixels per pixel) and the ``module`` that makes it, in front of the norm.
        out_channels: Channels of each returned map.
        out_strides: Input pixels per pixel of each returned map.
        feature_channels: Channels of all four stages, whichever are returned.

        pretrained: What :meth:`from_pretrained` has loaded, as :class:`mmdat.weights.Weights`; or None.

    Raises:
        ValueError: For an arch that makes no network or an argument out of range, naming the value.
        ImportError: For ``init_cfg`` without MMEngine.
    """

    def __init__(
        self,
        arch: Union[str, dict[str, Any], Arch] = 'tiny',
        img_size: Union[int, Sequence[int]] = 224,
        in_channels: int = 3,
        window_size: int = 7,
        out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        out_norm: bool = True,
        as_tuple: bool = True,
        sampler: str = 'torch',
        attn_impl: str = 'fast',
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        arch = get_arch(arch)
        img_size = _pair(img_size)
        out_indices = _stages(out_indices)
        if min(img_size) < MIN_SIZE:
            raise ValueError(f'img_size must be at least {MIN_SIZE} in both directions, got {img_size}')
        if window_size < 2:
            raise ValueError(f'window_size must be at least 2, got {window_size}')
        if not as_tuple and len(out_indices) > 1:
            raise ValueError(f'as_tuple=False returns one map, but out_indices={out_indices} names several')
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages must be from -1 (none) to {NUM_STAGES}, got {frozen_stages}')
        for name, rate in dict(
            drop_path_rate=drop_path_rate, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate
        ).items():
            if not 0 <= rate < 1:
                raise ValueError(f'{name} must be at least 0 and less than 1, got {rate}')
        self.arch = arch
        self.pretrained: Optional[Weights] = None
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.feature_channels = tuple(arch.dims)
        self.as_tuple = as_tuple
        self.feature_info = [
            dict(index=i, num_chs=arch.dims[i], reduction=4 * 2**i, module=f'stages.{i}') for i in out_indices
        ]
        self.out_channels = tuple(info['num_chs'] for info in self.feature_info)
        self.out_strides = tuple(info['reduction'] for info in self.feature_info)

        self.stem = make_stem(in_channels, arch.dims[0], arch.conv_stem)
        num_blocks = sum(arch.depths)
        drop_paths = [drop_path_rate * i / max(num_blocks - 1, 1) for i in range(num_blocks)]
        self.stages = nn.ModuleList()
        for i in range(NUM_STAGES):
            mixers = _mixers(
                arch,
                i,
                [side // 4 // 2**i for side in img_size],
                window_size,
                sampler,
                attn_impl,
                drop_rate,
                attn_drop_rate,
            )
            self.stages.append(
                Stage(
                    [
                        Block(arch.dims[i], mixer, drop_paths.pop(0), drop_rate, arch.lpu, arch.conv_mlp, with_cp)
                        for mixer in mixers
                    ]
                )
            )
        self.downsamples = nn.ModuleList(
            make_downsample(arch.dims[i], arch.dims[i + 1], arch.conv_stem) for i in range(NUM_STAGES - 1)
        )
        for i in out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(arch.dims[i]) if out_norm else nn.Identity())
        self._freeze_stages()

    @classmethod
    def from_pretrained(cls, name: str = 'tiny', **kwargs: Any) -> 'DAT':
        """A backbone with the authors' weights, which are downloaded on first use (docs/weights.md).

        Args:
            name: One of :func:`mmdat.list_weights`; or an architecture, such as ``'tiny'`` or ``'base++'``, for its
                ImageNet classifier at 224x224.
            kwargs: Other arguments of the class. Tables are resized to another ``img_size`` or ``window_size``, the
                first convolution is adapted to other ``in_channels``.

        Raises:
            CheckpointError: If the name is unknown, or there is no way to the file; says what to do by hand.
        """
        from mmdat.checkpoints.pretrained import build_pretrained  # which builds on the models

        return build_pretrained(cls, name, **kwargs)

    def forward(self, x: Tensor) -> Union[tuple[Tensor, ...], Tensor]:
        """``(B, in_channels, H, W)`` to a tuple of NCHW maps in the order of ``out_indices``.

        Stage i has stride ``4 * 2**i``; sides that are no multiples are cut, or with ``conv_stem`` rounded up.
        With ``as_tuple=False`` the only map is returned by itself.

        Raises:
            ValueError: If the image is smaller than 32 pixels in a direction.
        """
        if not torch.jit.is_tracing() and min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'the image must have at least {MIN_SIZE}x{MIN_SIZE} pixels, got '
                f'{x.shape[2]}x{x.shape[3]}: pad or resize it'
            )
        maps = {}
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                # Necks and heads of other projects may expect plain contiguous maps, as Swin gives.
                maps[i] = channelwise(getattr(self, f'norm{i}'), x).contiguous()
            if i < NUM_STAGES - 1:
                x = self.downsamples[i](x)
        outs = tuple(maps[i] for i in self.out_indices)
        return outs if self.as_tuple else outs[0]

    def train(self, mode: bool = True) -> 'DAT':
        """Set training mode; frozen parts stay in eval mode."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the papers' recipes train without weight decay: norms and position-bias tables.

        As timm's models say it; the released DAT++ spares the tables of D only, here those of N count as well.
        """
        norms = {
            f'{name}.{kind}'
            for name, module in self.named_modules()
            if isinstance(module, nn.LayerNorm)
            for kind, _ in module.named_parameters()
        }
        return norms | {name for name, _ in self.named_parameters() if name.endswith(TABLE)}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, to save memory, or no longer; the argument ``with_cp`` afterwards."""
        for stage in self.stages:
            for block in stage.blocks:
                block.with_cp = enable

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay; called as mmpretrain's backbones are.

        Args:
            param_name: Its name in the whole model.
            prefix: What the names of this backbone's parameters start with.

        Returns:
            The depth and the number of depths. Depth 0 is the stem, then come the blocks one by one, each stage's last
            together with the downsampling behind it, and at last the output norms and all that is not the backbone.
        """
        num_depths = sum(self.arch.depths) + 2
        last = num_depths - 1
        if not param_name.startswith(prefix):
            return last, num_depths
        part, *rest = param_name[len(prefix) :].split('.')
        if part == 'stem':
            return 0, num_depths
        if part == 'stages':  # stages.{stage}.blocks.{block}
            return sum(self.arch.depths[: int(rest[0])]) + int(rest[2]) + 1, num_depths
        if part == 'downsamples':
            return sum(self.arch.depths[: int(rest[0]) + 1]), num_depths
        return last, num_depths

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stem, *self.stages[: self.frozen_stages], *self.downsamples[: self.frozen_stages]]

    def _freeze_stages(self) -> None:
        for part in self._frozen_parts():
            part.requires_grad_(False)
            part.eval()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        """Take official checkpoints, and tables of other sizes, whichever way they are loaded."""
        adapt_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Stage(nn.Module):
    """The blocks between two downsamplings."""

    def __init__(self, blocks: list['Block']):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Block(nn.Module):
    """A mixer and an MLP, both behind a norm and beside a shortcut.

    Args:
        dim: Channels.
        mixer: Any of :mod:`mmdat.models.mixers`.
        drop_path: Probability of dropping each of the two branches.
        drop_rate: Dropout of the MLP.
        lpu: Put a local perception unit in front.
        conv_mlp: Put a convolution into the MLP.
        with_cp: Recompute the block in the backward pass.
    """

    def __init__(
        self, dim: int, mixer: nn.Module, drop_path: float, drop_rate: float, lpu: bool, conv_mlp: bool, with_cp: bool
    ):
        super().__init__()
        self.with_cp = with_cp
        self.lpu = depthwise_conv(dim) if lpu else None
        self.norm1 = nn.LayerNorm(dim)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, drop_rate, conv_mlp)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, use_reentrant=False)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.lpu is not None:
            x = x + self.lpu(x)
        x = x + self.drop_path(self.mixer(channelwise(self.norm1, x)))
        return x + self.drop_path(self.mlp(channelwise(self.norm2, x)))


def _mixers(
    arch: Arch,
    i: int,
    map_size: Sequence[int],
    window_size: int,
    sampler: str,
    attn_impl: str,
    drop_rate: float,
    attn_drop_rate: float,
) -> list[nn.Module]:
    """The mixers of the blocks of stage i, by the letters of its spec."""
    common = dict(
        in_channels=arch.dims[i],
        num_heads=arch.heads[i],
        attn_drop_rate=attn_drop_rate,
        proj_drop_rate=drop_rate,
        impl=attn_impl,
    )
    make = {
        'L': lambda: WindowAttention(window_size=window_size, **common),
        'S': lambda: ShiftedWindowAttention(window_size=window_size, **common),
        'N': lambda: NeighborhoodAttention(kernel_size=window_size, **common),
        'D': lambda: DeformableAttention(
            groups=arch.groups[i],
            map_size=map_size,
            kernel_size=arch.offset_kernels[i],
            stride=arch.key_strides[i],
            offset_range=arch.offset_range[i],
            convention=arch.convention,
            position_bias=arch.position_bias[i],
            use_offsets=arch.use_offsets[i],
            sampler=sampler,
            **common,
        ),
    }
    return [make[letter]() for letter in arch.stage_spec[i]]


def _pair(size: Union[int, Sequence[int]]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _stages(out_indices: Union[int, Sequence[int]]) -> tuple[int, ...]:
    """``out_indices`` as numbers from 0 on."""
    given = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    stages = tuple(i + NUM_STAGES if i in range(-NUM_STAGES, 0) else i for i in given)
    if not stages or len(set(stages)) < len(stages) or not set(stages) <= set(range(NUM_STAGES)):
        raise ValueError(
            f'out_indices must name different stages from 0 to {NUM_STAGES - 1}, or from the end, -1 to -{NUM_STAGES}, '
            f'got {given}'
        )
    return stages
