"""What the layouts share."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config, ConfigDict

from mmdat.datasets.files import hidden
from mmdat.errors import RunError

from ..walk import dicts, innermost_datasets

LAYOUT_HELP = 'docs/custom_data.md shows where files are looked for, and how to name other places'


@dataclass
class Layout:
    """A config whose datasets are to be found below a directory.

    Attributes:
        cfg: The config, which is completed in place.
        root: The directory of the data.
        work_dir: Where completed copies of annotations go.
        options: What goes with ``classes_from``.
        test_is_val: Whether the test data are the validation data.
        notes: What the user should know about the data.
        without_validation: Whether there is no validation data.
    """

    cfg: Config
    root: Path
    work_dir: Path
    options: dict[str, Any]
    test_is_val: bool
    notes: list[str] = field(default_factory=list)
    without_validation: bool = False

    @property
    def val_fraction(self) -> Optional[float]:
        return self.options['val_fraction']

    def datasets(self, part: str) -> list[ConfigDict]:
        """The datasets of a part (train, val or test) that read files."""
        loader = self.cfg.get(f'{part}_dataloader')
        return list(innermost_datasets(loader.dataset)) if loader else []

    def transforms(self, name: str) -> list[ConfigDict]:
        """All transforms of a type in the pipelines."""
        nodes = [self.cfg[key] for key in self.cfg if key.endswith(('_pipeline', '_dataloader'))]
        return [node for node in dicts(nodes) if node.get('type') == name]

    @property
    def ignore_orientation(self) -> bool:
        """Whether images are loaded as their files store them, whatever turn their EXIF data ask for."""
        loaders = self.transforms('LoadImageFromFile')
        return any(_ignores_orientation(loader) for loader in loaders)

    def load_unturned(self) -> None:
        """Have images loaded as their files store them."""
        for loader in self.transforms('LoadImageFromFile'):
            if not _ignores_orientation(loader):
                loader.color_type = loader.get('color_type', 'color') + '_ignore_orientation'


def _ignores_orientation(loader: dict) -> bool:
    backend, color = loader.get('imdecode_backend', 'cv2'), loader.get('color_type', 'color')
    return backend in ('turbojpeg', 'tifffile') or color == 'unchanged' or color.endswith('_ignore_orientation')


def require(path: Path) -> None:
    """Refuse a path that does not exist."""
    if not path.exists():
        raise RunError(f'there is no {path.absolute()}: {LAYOUT_HELP}')


def holds_files(path: Path) -> bool:
    """Whether a folder has a file that is not hidden, however deep."""
    return any(file.is_file() and not hidden(file, path) for file in path.rglob('*'))


def printable(name: str) -> str:
    """A name without control characters, which a terminal would obey."""
    return ' '.join(''.join(letter if letter.isprintable() else ' ' for letter in name).split())


def class_names(path: Path) -> list[str]:
    """The names that a text file lists, a class per line; blank lines count for nothing."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except ValueError as error:
        raise RunError(f'{path} is no text in UTF-8: save it as such') from error
    return [printable(line) for line in lines if printable(line)]
