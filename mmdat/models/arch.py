"""The published architectures, and the check of a user's own."""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Optional, Union

from .mixers.coordinates import CONVENTIONS
from .mixers.deformable import POSITION_BIASES

NUM_STAGES = 4
MIXERS = 'LSND'


@dataclass(frozen=True)
class Arch:
    """Shape of a DAT. Fields per stage are tuples of four; :meth:`from_dict` takes lists and single values as well.

    Attributes:
        dims: Channels per stage.
        depths: Blocks per stage.
        heads: Attention heads per stage; each divides its entry of ``dims``.
        groups: Offset groups per stage; divides ``heads``. Ignored (-1) where the stage has no D.
        stage_spec: Mixer of each block per stage, such as ``('LS', 'LS', 'LDLDLD', 'LD')``.
            L window attention, S shifted window attention, N neighbourhood attention, D deformable attention.
        conv_stem: Stem and downsampling by overlapping 3x3 convolutions, in place of patches that do not overlap.
        conv_mlp: A depthwise 3x3 convolution with a shortcut in every MLP.
        lpu: A local perception unit in front of every block: a depthwise 3x3 convolution with a shortcut.
        convention: Where sampling points and queries lie, ``'dat'`` or ``'dat++'``; see
            :mod:`mmdat.models.mixers.coordinates`.
        offset_kernels: Kernel of the offset network per stage.
        key_strides: Pixels per sampling point, along each axis, per stage.
        offset_range: Range factor of the offsets per stage; None for free offsets with clamped positions.
        position_bias: Kind of position bias of D per stage: table, fixed, dwconv, log or none.
        use_offsets: Per stage; False pools the keys in place of sampling them.
    """

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    groups: tuple[int, ...]
    stage_spec: tuple[str, ...]
    conv_stem: bool
    conv_mlp: bool
    lpu: bool
    convention: str
    offset_kernels: tuple[int, ...] = (9, 7, 5, 3)
    key_strides: tuple[int, ...] = (1,) * NUM_STAGES
    offset_range: tuple[Optional[float], ...] = (None,) * NUM_STAGES
    position_bias: tuple[str, ...] = ('table',) * NUM_STAGES
    use_offsets: tuple[bool, ...] = (True,) * NUM_STAGES

    def __post_init__(self):
        for name in PARTS[:-1]:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f'arch field {name} must be True or False, got {getattr(self, name)!r}')
        if self.convention not in CONVENTIONS:
            raise ValueError(f'arch field convention must be one of {CONVENTIONS}, got {self.convention!r}')
        for stage in range(NUM_STAGES):
            self._check_stage(stage)

    @classmethod
    def from_dict(cls, arch: dict[str, Any]) -> 'Arch':
        """Make and check an architecture.

        Args:
            arch: The fields. Those per stage are lists of four, or, but for dims, depths, heads, groups and stage_spec,
                one value for all stages. ``generation`` (``'dat'``, ``'dat+'`` or ``'dat++'``) sets the fields of
                :data:`GENERATIONS` that the dict does not have.

        Raises:
            ValueError: If the fields make no network; names the field and its value.
        """
        arch = dict(arch)
        known = {field.name: field.default is MISSING for field in fields(cls)}
        unknown = sorted(set(arch) - set(known) - {'generation'})
        if unknown:
            raise ValueError(
                f'arch has unknown field {unknown[0]!r}={arch[unknown[0]]!r}; '
                f'the fields are {", ".join(sorted([*known, "generation"]))}'
            )
        if 'generation' in arch:
            generation = arch.pop('generation')
            if generation not in GENERATIONS:
                raise ValueError(f'arch field generation must be one of {tuple(GENERATIONS)}, got {generation!r}')
            arch = {**GENERATIONS[generation], **arch}
        missing = [name for name, required in known.items() if required and name not in arch]
        if missing and missing[0] in PARTS:
            raise ValueError(
                f"arch lacks the field 'generation', one of {tuple(GENERATIONS)}, "
                f'or in its place {", ".join(missing)}; it has {sorted(arch)}'
            )
        if missing:
            raise ValueError(
                f'arch lacks the field {missing[0]!r}; it has {sorted(arch)}. To change a published one, begin with '
                f"its dict: dict(mmdat.models.arch.ARCHS['tiny'], {missing[0]}=...)"
            )
        return cls(**{name: value if name in PARTS else _per_stage(name, value) for name, value in arch.items()})

    def _check_stage(self, i: int) -> None:

        def refuse(name: str, why: str) -> None:
            raise ValueError(f'arch field {name}[{i}]={getattr(self, name)[i]!r} {why}')

        def check_positive(*names: str) -> None:
            for name in names:
                value = getattr(self, name)[i]
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    refuse(name, 'is not a positive whole number')

        check_positive('dims', 'depths', 'heads')
        if self.dims[i] % self.heads[i]:
            refuse('heads', f'does not divide dims[{i}]={self.dims[i]}')
        spec = self.stage_spec[i]
        wrong = [letter for letter in spec if letter not in MIXERS]
        if wrong:
            refuse('stage_spec', f'has the unknown letter {wrong[0]!r}; the mixers are {", ".join(MIXERS)}')
        if len(spec) != self.depths[i]:
            refuse('stage_spec', f'names {len(spec)} blocks, but depths[{i}]={self.depths[i]}')
        if 'D' not in spec:
            return
        check_positive('groups', 'offset_kernels', 'key_strides')
        if self.heads[i] % self.groups[i]:
            refuse('groups', f'does not divide heads[{i}]={self.heads[i]}')
        kernel, stride = self.offset_kernels[i], self.key_strides[i]
        if self.use_offsets[i] and kernel != stride and kernel % 2 == 0:
            refuse('offset_kernels', f'is even; it must be odd, or equal key_strides[{i}]={stride}')
        factor = self.offset_range[i]
        if factor is not None and not (isinstance(factor, (int, float)) and factor > 0):
            refuse('offset_range', 'is not positive; None means free offsets with clamped positions')
        if self.position_bias[i] not in POSITION_BIASES:
            refuse('position_bias', f'is unknown; the kinds are {", ".join(POSITION_BIASES)}')


#: Fields of :class:`Arch` that hold for the whole network.
PARTS = ('conv_stem', 'conv_mlp', 'lpu', 'convention')


def _per_stage(name: str, value: Any) -> tuple:
    """A field as a tuple of a value per stage."""
    if isinstance(value, (list, tuple)):
        if len(value) != NUM_STAGES:
            raise ValueError(
                f'arch field {name} has {len(value)} entries, not one for each of the {NUM_STAGES} stages: {value!r}'
            )
        return tuple(''.join(spec) for spec in value) if name == 'stage_spec' else tuple(value)
    if name in ('dims', 'depths', 'heads', 'groups', 'stage_spec'):
        raise ValueError(f'arch field {name} must list {NUM_STAGES} stages, got {value!r}')
    return (value,) * NUM_STAGES


#: What ``generation`` in an arch dict stands for: DAT (CVPR 2022), DAT+ (released beside DAT++, in no paper's table)
#: and DAT++. Each field can be set on its own.
GENERATIONS = {
    'dat': dict(conv_stem=False, conv_mlp=False, lpu=False, convention='dat', key_strides=1, offset_range=2.0),
    'dat+': dict(
        conv_stem=False, conv_mlp=False, lpu=False, convention='dat++', key_strides=(8, 4, 2, 1), offset_range=None
    ),
    'dat++': dict(
        conv_stem=True, conv_mlp=True, lpu=True, convention='dat++', key_strides=(8, 4, 2, 1), offset_range=None
    ),
}

_DAT = dict(generation='dat', groups=(-1, -1, 3, 6), heads=(3, 6, 12, 24), dims=(96, 192, 384, 768))
_DATPP = dict(generation='dat++', depths=(2, 4, 18, 2), stage_spec=('ND', 'NDND', 'ND' * 9, 'DD'))
_TINY = dict(depths=(2, 2, 6, 2), stage_spec=('LS', 'LS', 'LD' * 3, 'LD'))
_DEEP = dict(depths=(2, 2, 18, 2), stage_spec=('LS', 'LS', 'LD' * 9, 'LD'))
_BASE = dict(dims=(128, 256, 512, 1024), heads=(4, 8, 16, 32))
_TINYPP = {**_DATPP, 'dims': (64, 128, 256, 512), 'heads': (2, 4, 8, 16), 'groups': (1, 2, 4, 8)}

#: DAT (CVPR 2022, table 1), DAT+ and DAT++ (table 1), by the names that ``DAT(arch=...)`` takes.
ARCHS = {
    'tiny': {**_DAT, **_TINY},
    'small': {**_DAT, **_DEEP},
    'base': {**_DAT, **_DEEP, **_BASE, 'groups': (-1, -1, 4, 8)},
    'tiny+': {**_TINYPP, 'generation': 'dat+'},
    'tiny++': _TINYPP,
    'small++': {**_DATPP, 'dims': (96, 192, 384, 768), 'heads': (3, 6, 12, 24), 'groups': (1, 2, 3, 6)},
    'base++': {**_DATPP, **_BASE, 'groups': (2, 4, 8, 16)},
}


def get_arch(arch: Union[str, dict[str, Any], Arch]) -> Arch:
    """The checked architecture of a name in :data:`ARCHS` or of a dict.

    Raises:
        ValueError: For an unknown name, or a dict that makes no network; names the field and value.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}; choose one of {", ".join(ARCHS)}, or give a dict')
        arch = ARCHS[arch]
    if not isinstance(arch, dict):
        raise ValueError(f'arch must be a name or a dict, got {type(arch).__name__}: {arch!r}')
    return Arch.from_dict(arch)
