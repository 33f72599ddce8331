"""Loading weights: the official key layout, tables of other sizes, files of the wrong model.

The official release saves classification models as ``{'model': state_dict}``, detectors and segmentors
as ``{'state_dict': {'backbone.…', 'neck.…'}}``. A :class:`mmdat.DAT` calls :func:`adapt_state_dict`
whenever weights are loaded into it, by torch or by MMEngine, so either kind needs no conversion.
"""

import re
from typing import Any, NamedTuple, Optional

import torch
import torch.nn as nn
from torch import Tensor

from mmdat.errors import CheckpointError

from .arch import ARCHS, NUM_STAGES, get_arch
from .mixers.official import TABLE, convert_weight, resize_table

StateDict = dict[str, Tensor]

# Official key to ours, applied in this order; None drops what we compute instead of storing it. Below a mixer,
# mixers/official.py goes on.
_RENAMES = [
    (re.compile(pattern), target)
    for pattern, target in [
        (r'^cls_head\..*', None),
        (r'.*\.(relative_position_index|attn_mask)$', None),
        (r'^patch_proj\.(\d+)\.(norm\.)?', r'stem.\1.'),
        (r'^down_projs\.(\d+)\.(\d+)\.(norm\.)?', r'downsamples.\1.\2.'),
        (r'^norms\.(\d+)\.norm\.', r'norm\1.'),
        (r'^cls_norm\.norm\.', f'norm{NUM_STAGES - 1}.'),
        (r'^(stages\.\d+)\.local_perception_units\.(\d+)\.', r'\1.blocks.\2.lpu.'),
        (r'^(stages\.\d+)\.mlps\.(\d+)\.(?:chunk\.)?linear([12])\.(?:0\.)?', r'\1.blocks.\2.mlp.fc\3.'),
        (r'^(stages\.\d+)\.mlps\.(\d+)\.dwc\.', r'\1.blocks.\2.mlp.dwconv.'),
        (r'^(stages\.\d+)\.attns\.(\d+)\.', r'\1.blocks.\2.mixer.'),
    ]
]
_INPUT = 'stem.0.weight'
# 1x1 convolutions that are linear layers here.
_LINEAR = re.compile(r'\.fc[12]\.weight$')


def is_official(state_dict: StateDict) -> bool:
    """Whether the keys (without ``backbone.``) have the layout of the official release."""
    return 'patch_proj.0.weight' in state_dict


def convert_official(state_dict: StateDict) -> StateDict:
    """Rename an official backbone's state dict, without ``backbone.``, to ours.

    Values are kept but for the shape of 1x1 convolutions, which are linear layers here; so a dict of
    gradients or of optimizer states can be renamed just as well. The classification head and buffers
    that follow from the architecture are left out; ``cls_norm`` becomes the last stage's output norm.
    """
    converted = {}
    for key, value in state_dict.items():
        norm = re.match(r'^(stages\.\d+)\.layer_norms\.(\d+)\.norm\.(.*)', key)
        if norm:  # two norms per block, counted through the stage
            index = int(norm[2])
            key = f'{norm[1]}.blocks.{index // 2}.norm{index % 2 + 1}.{norm[3]}'
        for pattern, target in _RENAMES:
            if target is None and pattern.match(key):
                key = None
                break
            key = pattern.sub(target or '', key)
        if key is None:
            continue
        mixer = re.match(r'^(stages\.\d+\.blocks\.\d+\.mixer\.)(.*)', key)
        if mixer:
            name, value = convert_weight(mixer[2], value)
            key = mixer[1] + name
        if _LINEAR.search(key) and value.dim() == 4:
            value = value.flatten(1)
        converted[key] = value
    return converted


def convert_model(checkpoint: dict[str, Any]) -> StateDict:
    """The weights of a whole model by the toolboxes' keys, of an official checkpoint or one that has them already.

    The head of an official classifier becomes that of mmpretrain's ImageClassifier; all of a detector or segmentor but
    its backbone keeps its keys.

    Raises:
        CheckpointError: If the checkpoint has no DAT.
    """
    entries = {key: value for key, value in unwrap(checkpoint).items() if isinstance(value, Tensor)}
    backbone = backbone_entries(entries)
    others = {key: value for key, value in entries.items() if not key.startswith('backbone.')}
    if is_official(backbone):
        if backbone is entries:  # a classifier, whose backbone has no prefix
            others = {f'head.fc.{key[9:]}': value for key, value in entries.items() if key.startswith('cls_head.')}
        backbone = convert_official(backbone)
    elif backbone is entries:
        others = {}
    if Signature.of(backbone) is None:
        raise CheckpointError('the file holds no whole DAT: choose another file')
    return {**{f'backbone.{key}': value for key, value in backbone.items()}, **others}


class Signature(NamedTuple):
    """What tells one architecture from another in a state dict."""

    conv_stem: bool
    conv_mlp: bool
    lpu: bool
    dims: tuple[int, ...]
    heads: tuple[Optional[int], ...]
    mixers: tuple[str, ...]

    @classmethod
    def of(cls, state_dict: StateDict) -> Optional['Signature']:
        """Read from a state dict of our layout; None if it holds no whole backbone."""
        downsamples = [f'downsamples.{i}.0.weight' for i in range(NUM_STAGES - 1)]
        if 'stem.0.weight' not in state_dict or not all(key in state_dict for key in downsamples):
            return None
        dims = [state_dict[downsamples[0]].shape[1], *(state_dict[key].shape[0] for key in downsamples)]
        mixers: list[str] = []
        heads: list[Optional[int]] = []
        for i in range(NUM_STAGES):
            letters, count = '', None
            while f'stages.{i}.blocks.{len(letters)}.norm1.weight' in state_dict:
                mixer = f'stages.{i}.blocks.{len(letters)}.mixer.'
                table = state_dict.get(mixer + TABLE)
                # S has the parameters of L; N and D keep the heads in front.
                flat = table is not None and table.dim() == 2
                deformable = any(f'{mixer}proj_{name}.weight' in state_dict for name in 'qkv')
                letters += 'D' if deformable else 'L' if flat else 'N'
                if table is not None:
                    count = table.shape[-1 if flat else 0]
            mixers.append(letters)
            heads.append(count)
        return cls(
            conv_stem='stem.3.weight' in state_dict,
            conv_mlp='stages.0.blocks.0.mlp.dwconv.weight' in state_dict,
            lpu='stages.0.blocks.0.lpu.weight' in state_dict,
            dims=tuple(dims),
            heads=tuple(heads),
            mixers=tuple(mixers),
        )

    @property
    def name(self) -> Optional[str]:
        """The name in :data:`mmdat.models.arch.ARCHS`, if it is a published one."""
        for name in ARCHS:
            arch = get_arch(name)
            mixers = tuple(spec.replace('S', 'L') for spec in arch.stage_spec)
            if self == (arch.conv_stem, arch.conv_mlp, arch.lpu, arch.dims, arch.heads, mixers):
                return name
        return None

    def __str__(self) -> str:
        if self.name:
            return f"arch='{self.name}'"
        return (
            f'an architecture with conv_stem={self.conv_stem}, conv_mlp={self.conv_mlp}, lpu={self.lpu}, '
            f'dims={self.dims}, heads={self.heads} and depths={tuple(len(m) for m in self.mixers)}'
        )


def adapt_state_dict(model: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Make the entries below ``prefix`` fit a DAT, in place; the others are not touched.

    Unwraps ``{'model': …}``, ``module.`` and ``backbone.``, renames official keys, resizes tables (bicubic), makes the
    first convolution of a model for RGB take other channels, and leaves out the output norm of a classification model
    where several stages are returned, as the official detection training does. What is then missing or unexpected is
    for the caller to report.

    Raises:
        CheckpointError: If the weights are of another architecture; says which one they look like.
    """
    entries = {key[len(prefix) :]: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
    entries = backbone_entries(unwrap(entries))
    own = model.state_dict()
    if is_official(entries):
        entries = convert_official(entries)
        # Official models without offsets store their offset networks all the same.
        entries = {key: value for key, value in entries.items() if '.offset_net.' not in key or key in own}
    theirs, ours = Signature.of(entries), Signature.of(own)
    if theirs is not None and theirs != ours:
        raise CheckpointError(
            f'these weights are of {theirs}, but the backbone is {ours}: '
            f'choose the other checkpoint, or set arch of the backbone to fit it'
        )
    if entries and not any(key in own for key in entries):
        raise CheckpointError(
            f'these weights are not of a DAT; they have, for example, {next(iter(entries))}: choose a '
            f'checkpoint of this model'
        )
    for key, value in entries.items():
        if key.endswith(TABLE) and key in own and own[key].shape != value.shape:
            entries[key] = resize_table(value, own[key].shape)
    if _INPUT in entries and _INPUT in own:
        entries[_INPUT] = adapt_input(entries[_INPUT], own[_INPUT].shape[1])
    norms = {key for key in entries if re.match(r'norm\d\.', key)}
    if len(model.out_indices) > 1 and norms and all(key.startswith(f'norm{NUM_STAGES - 1}.') for key in norms):
        for key in norms:
            del entries[key]
    state_dict.update({prefix + key: value for key, value in entries.items()})


def unwrap(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The state dict of a checkpoint, which may keep it beside other things; a state dict as it is.

    What DistributedDataParallel (``module.``) and torch.compile (``_orig_mod.``) put before all keys is left out.
    """
    for wrapper in ('model', 'state_dict'):
        if isinstance(checkpoint.get(wrapper), dict):
            checkpoint = checkpoint[wrapper]
            break
    for prefix in ('module.', '_orig_mod.', 'module.'):  # the compiled model may be inside or outside
        if checkpoint and all(key.startswith(prefix) for key in checkpoint):
            checkpoint = {key[len(prefix) :]: value for key, value in checkpoint.items()}
    return checkpoint


def backbone_entries(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The backbone's part of a whole model's state dict; a bare backbone's as it is."""
    inner = {key[len('backbone.') :]: value for key, value in state_dict.items() if key.startswith('backbone.')}
    return inner or state_dict


def adapt_input(weight: Tensor, channels: int) -> Tensor:
    """Make the first convolution of a model for RGB take images of another number of channels, as timm does.

    One channel gets the sum over red, green and blue, so a grey image gives what its three equal channels gave. More
    channels repeat them in turn, scaled so that channels of equal values give what they gave.

    Args:
        weight: ``(out, 3, height, width)``; of any other number of channels it is returned as it is.
        channels: Channels of the image.
    """
    if weight.shape[1] != 3 or channels == 3:
        return weight
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))  # what is summed up in half precision is lost
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)
