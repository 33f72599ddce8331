"""What the layouts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config, ConfigDict

from mmdat.datasets.files import ImageSize, hidden, in_threads
from mmdat.errors import RunError
from mmdat.models.dat import MIN_SIZE

from ..walk import dicts, innermost_datasets

# Parts of the names of transforms that change the size of images.
_RESIZING = ('Resize', 'Crop', 'Pad', 'Scale')
# What every loader reads.
_COMMON = ('.jpg', '.jpeg', '.png', '.webp')
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

    @property
    def val_seed(self) -> int:
        return self.options['val_seed']

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

    def check_images(self, part: str, images: Sequence[Path], sizes: Sequence[Optional[ImageSize]]) -> None:
        """Refuse images that stay smaller than the backbone takes, or that the config's own loader cannot read.

        Of kinds that every loader reads, only heads are looked at.

        Args:
            part: train, val or test.
            images: The files.
            sizes: What their heads say.
        """
        # The toolboxes squeeze label maps and flip images, which goes wrong with a side of one pixel.
        least = 2 if self._changes_sizes(part) else MIN_SIZE
        for image, size in zip(images, sizes):
            if size is not None and min(size.height, size.width) < least:
                remedy = ', or resize or pad images in its pipeline' if least == MIN_SIZE else ''
                raise RunError(
                    f'{image} has {size.height}x{size.width} pixels (height x width), but the config takes images from '
                    f'{least}x{least} on: take it out of the dataset{remedy}'
                )
        loader = next(iter(self.transforms('LoadImageFromFile')), None)
        rare = [image for image in images if image.suffix.lower() not in _COMMON]
        if loader and rare:
            load = LoadImageFromFile(**{key: value for key, value in loader.items() if key != 'type'})
            in_threads(lambda image: _load(load, image), rare)

    def _changes_sizes(self, part: str) -> bool:
        """Whether images are resized, cropped or padded."""
        steps = [step for dataset in self.datasets(part) for step in dataset.get('pipeline') or []]
        padded = any(node.get('pad_size_divisor') for node in dicts(self.cfg.get('model')))
        return padded or any(word in str(step.get('type')) for step in steps for word in _RESIZING)

    def load_unturned(self) -> None:
        """Have images loaded as their files store them."""
        for loader in self.transforms('LoadImageFromFile'):
            if not _ignores_orientation(loader):
                loader.color_type = loader.get('color_type', 'color') + '_ignore_orientation'


def _ignores_orientation(loader: dict) -> bool:
    backend, color = loader.get('imdecode_backend', 'cv2'), loader.get('color_type', 'color')
    return backend in ('turbojpeg', 'tifffile') or color == 'unchanged' or color.endswith('_ignore_orientation')


def _load(load: Callable[[dict], Any], image: Path) -> None:
    try:
        load(dict(img_path=str(image)))
    except Exception as error:  # each backend has its own
        hint = ", or for TIFFs of other numbers than 8 bits set imdecode_backend='tifffile' in the pipelines"
        raise RunError(
            f'{image} cannot be read by the LoadImageFromFile of the config: save it as PNG or JPEG'
            f'{hint if image.suffix.lower().startswith(".tif") else ""}'
        ) from error


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
    """The names that a text file lists, a class per line."""
    return [printable(line) for line in text_lines(path) if printable(line)]


def text_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except ValueError as error:
        raise RunError(f'{path} is no text in UTF-8: save it as such') from error
    return [line for line in lines if line.strip()]
