"""The architectures of both papers, and the check of a user's own."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional, Union

from .mixers.deformable import POSITION_BIASES

NUM_STAGES = 4
MIXERS = 'LSND'


@dataclass
class Arch:
    """Shape of a DAT; a field per stage is a list of four, or one value for all stages.

    Attributes:
        generation: ``'dat'`` or ``'dat++'``: which stem, downsampling, MLP, local perception units and
            coordinates are used (see docs of :class:`mmdat.DAT`), and the defaults of the optional fields.
        dims: Channels per stage.
        depths: Blocks per stage.
        heads: Attention heads per stage; each divides its entry of ``dims``.
        groups: Offset groups per stage; divides ``heads``. Ignored (-1) where the stage has no D.
        stage_spec: Mixer of each block per stage, such as ``('LS', 'LS', 'LDLDLD', 'LD')``.
            L window attention, S shifted window attention, N neighbourhood attention, D deformable attention.
        dim_stem: Channels of the stem; ``dims[0]`` by default, and no other is possible.
        offset_kernels: Kernel of the offset network per stage.
        key_strides: Pixels per sampling point, along each axis, per stage.
        offset_range: Range factor of the offsets per stage; None for free offsets with clamped positions.
        position_bias: Kind of position bias of D per stage: table, fixed, dwconv, log or none.
        use_offsets: Per stage; False pools the keys in place of sampling them.
    """

    generation: str
    dims: Sequence[int]
    depths: Sequence[int]
    heads: Sequence[int]
    groups: Sequence[int]
    stage_spec: Sequence[str]
    dim_stem: Optional[int] = None
    offset_kernels: Union[int, Sequence[int]] = (9, 7, 5, 3)
    key_strides: Union[int, Sequence[int], None] = None
    offset_range: Union[str, float, Sequence[Optional[float]], None] = 'published'
    position_bias: Union[str, Sequence[str]] = 'table'
    use_offsets: Union[bool, Sequence[bool]] = True

    def __post_init__(self):
        if self.generation not in ('dat', 'dat++'):
            raise ValueError(f"arch field generation must be 'dat' or 'dat++', got {self.generation!r}")
        if self.key_strides is None:
            self.key_strides = 1 if self.generation == 'dat' else (8, 4, 2, 1)
        if self.offset_range == 'published':
            self.offset_range = 2.0 if self.generation == 'dat' else None
        for field in fields(self):
            if field.name not in ('generation', 'dim_stem'):
                setattr(self, field.name, self._per_stage(field.name))
        self.stage_spec = tuple(''.join(spec) for spec in self.stage_spec)
        if self.dim_stem not in (None, self.dims[0]):
            raise ValueError(
                f'arch field dim_stem={self.dim_stem} differs from dims[0]={self.dims[0]}: '
                f'the first stage takes what the stem gives'
            )
        self.dim_stem = self.dims[0]
        for stage in range(NUM_STAGES):
            self._check_stage(stage)

    @classmethod
    def from_dict(cls, arch: dict[str, Any]) -> 'Arch':
        """Make and check an architecture; errors name the field and its value."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(arch) - known)
        if unknown:
            raise ValueError(
                f'arch has unknown field {unknown[0]!r}={arch[unknown[0]]!r}; the fields are {", ".join(sorted(known))}'
            )
        missing = [f for f in ('generation', 'dims', 'depths', 'heads', 'groups', 'stage_spec') if f not in arch]
        if missing:
            raise ValueError(f'arch lacks the field {missing[0]!r}; it has {sorted(arch)}')
        return cls(**arch)

    def _per_stage(self, name: str) -> tuple:
        value = getattr(self, name)
        required = name in ('dims', 'depths', 'heads', 'groups', 'stage_spec')
        if isinstance(value, (list, tuple)):
            if len(value) != NUM_STAGES:
                raise ValueError(
                    f'arch field {name} has {len(value)} entries, not one for each of the '
                    f'{NUM_STAGES} stages: {value!r}'
                )
            return tuple(value)
        if required:
            raise ValueError(f'arch field {name} must list {NUM_STAGES} stages, got {value!r}')
        return (value,) * NUM_STAGES

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
        if self.offset_range[i] is not None and not self.offset_range[i] > 0:
            refuse('offset_range', 'is not positive; None means free offsets with clamped positions')
        if self.position_bias[i] not in POSITION_BIASES:
            refuse('position_bias', f'is unknown; the kinds are {", ".join(POSITION_BIASES)}')


_DAT = dict(generation='dat', groups=(-1, -1, 3, 6), heads=(3, 6, 12, 24), dims=(96, 192, 384, 768))
_DATPP = dict(generation='dat++', depths=(2, 4, 18, 2), stage_spec=('ND', 'NDND', 'ND' * 9, 'DD'))
_TINY = dict(depths=(2, 2, 6, 2), stage_spec=('LS', 'LS', 'LD' * 3, 'LD'))
_DEEP = dict(depths=(2, 2, 18, 2), stage_spec=('LS', 'LS', 'LD' * 9, 'LD'))
_BASE = dict(dims=(128, 256, 512, 1024), heads=(4, 8, 16, 32))

#: DAT (CVPR 2022, table 1) and DAT++ (table 1), by the names that ``DAT(arch=...)`` takes.
ARCHS = {
    'tiny': {**_DAT, **_TINY},
    'small': {**_DAT, **_DEEP},
    'base': {**_DAT, **_DEEP, **_BASE, 'groups': (-1, -1, 4, 8)},
    'tiny++': {**_DATPP, 'dims': (64, 128, 256, 512), 'heads': (2, 4, 8, 16), 'groups': (1, 2, 4, 8)},
    'small++': {**_DATPP, 'dims': (96, 192, 384, 768), 'heads': (3, 6, 12, 24), 'groups': (1, 2, 3, 6)},
    'base++': {**_DATPP, **_BASE, 'groups': (2, 4, 8, 16)},
}


def get_arch(arch: Union[str, dict[str, Any]]) -> Arch:
    """The checked architecture of a name in :data:`ARCHS` or of a dict.

    Raises:
        ValueError: For an unknown name, or a dict that makes no network; names the field and value.
    """
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}; choose one of {", ".join(ARCHS)}, or give a dict')
        arch = ARCHS[arch]
    if not isinstance(arch, dict):
        raise ValueError(f'arch must be a name or a dict, got {type(arch).__name__}: {arch!r}')
    return Arch.from_dict(arch)
