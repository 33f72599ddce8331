"""What files of a dataset hold, read as the toolboxes read them: sizes of images, values of label maps."""

import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdat.errors import RunError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
JPEG_SUFFIXES = ('.jpg', '.jpeg')
# Folders that systems and tools leave behind.
_SYSTEM = ('.', '__MACOSX', '@eaDir', '__pycache__', '$RECYCLE.BIN', 'System Volume Information', 'lost+found')
_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


class ImageSize(NamedTuple):
    """Size of an image as its file stores it, in pixels; ``turned`` if its EXIF data ask for a turn by 90 degrees."""

    height: int
    width: int
    turned: bool

    def loaded(self, ignore_orientation: bool) -> tuple[int, int]:
        """Height and width of what is loaded."""
        return (self.height, self.width) if ignore_orientation or not self.turned else (self.width, self.height)


class LabelMap(NamedTuple):
    """Size of a label map, and how many pixels have each of its values."""

    height: int
    width: int
    pixels: dict[int, int]


def hidden(path: Path, root: Path) -> bool:
    """Whether a file or a folder of it below ``root`` is hidden or of the system, such as ``.ipynb_checkpoints``."""
    return any(part.startswith(_SYSTEM) for part in path.relative_to(root).parts)


def find_images(root: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The images below a directory, sorted; hidden ones are left out. Suffixes fit in capitals, too."""
    found = (path for path in root.rglob('*') if path.name.lower().endswith(tuple(s.lower() for s in suffixes)))
    return sorted(path for path in found if path.is_file() and not hidden(path, root))


def pair_files(images: Path, labels: Path, img_suffix: str, seg_map_suffix: str) -> list[tuple[Path, Path]]:
    """Each image with the path of its label map: ``NAME`` and ``img_suffix``, ``NAME`` and ``seg_map_suffix``."""
    pairs = []
    for image in find_images(images, (img_suffix,)):
        if not image.name.endswith(img_suffix) or (images == labels and image.name.endswith(seg_map_suffix)):
            continue
        name = str(image.relative_to(images))[: -len(img_suffix)]
        pairs.append((image, labels / (name + seg_map_suffix)))
    return pairs


def held_out(names: Sequence[Any], fraction: float, seed: int) -> set[Any]:
    """A random part of some names, at least one and not all; the same for the same names and seed."""
    count = min(max(round(len(names) * fraction), 1), len(names) - 1)
    return set(random.Random(seed).sample(sorted(names), count))


def in_threads(function: Callable, items: Iterable[Any]) -> list[Any]:
    """Call a function that mostly waits for files or decodes images for each item."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        return list(pool.map(function, items))


def image_size(path: Path) -> Optional[ImageSize]:
    """Size of an image by the head of its file; None for a TIFF that Pillow does not know.

    Raises:
        RunError: If the file is no image, is cut off, or has more pixels than Pillow takes for honest.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
            if not _ends(path, image.format):
                image.load()
            return ImageSize(image.height, image.width, turned)
    except Image.DecompressionBombError as error:
        raise too_large(path, error) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if path.stat().st_size and path.suffix.lower() in ('.tif', '.tiff'):
            return None
        raise RunError(f'{path} is not a readable image: replace it, or take it out of the dataset') from error


def _ends(path: Path, kind: Optional[str]) -> bool:
    """Whether the mark that ends a JPEG or PNG is in the last bytes of its file; copying that is cut off loses it."""
    mark = dict(JPEG=b'\xff\xd9', PNG=b'IEND').get(kind or '')
    if mark is None:
        return True
    with path.open('rb') as file:
        file.seek(-min(path.stat().st_size, 64), os.SEEK_END)
        return mark in file.read()


def too_large(path: Path, error: Exception) -> RunError:
    """The sentence for an image that Pillow refuses to decode."""
    reason = str(error).split(', could be')[0]
    return RunError(f'{path} is too large to be loaded ({reason}): cut it into smaller ones, or take it out')


def read_label_map(path: Path) -> LabelMap:
    """Size and values of a label map as mmseg reads it, by Pillow: of a palette the numbers, not the colours.

    Raises:
        RunError: If it is no label map; says what it is.
    """
    return _read_label_map(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)  # looked at when classes are counted and again when what is trained on is counted
def _read_label_map(path: str, modified: int) -> LabelMap:
    try:
        with Image.open(path) as image:
            lossy = image.format == 'JPEG'  # whatever its name says
        labels = mmcv.imread(path, flag='unchanged', backend='pillow')
    except Image.DecompressionBombError as error:
        raise too_large(Path(path), error) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise RunError(f'{path} is not a readable label map: replace it, or take it out of the dataset') from error
    if lossy:
        raise RunError(
            f'{path} is a JPEG, which changes the values of pixels, whatever its suffix: save it as PNG anew'
        )
    if labels.ndim != 2:
        kind = f'a colour picture of {labels.shape[2]} channels'
        if labels.shape[2] >= 3 and (labels[..., :3] == labels[..., :1]).all():
            kind = 'a gray picture saved in colour, as its channels are all the same'
        raise RunError(
            f'{path} is {kind}, not a label map: save it with one channel (or as a PNG with a palette) that has the '
            f'number of a class at each pixel'
        )
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    if labels.dtype.kind not in 'ui':
        raise RunError(f'{path} has {labels.dtype} values, not whole numbers: save it as an 8-bit PNG')
    if labels.dtype == np.uint8:
        counts = np.bincount(labels.ravel(), minlength=256)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(labels, return_counts=True)
        if values[0] < 0 or values[-1] > 255:
            raise RunError(
                f'{path} has values from {values[0]} to {values[-1]}, but label maps are read with 8 bits: number the '
                f'classes from 0 to 254, and mark what belongs to none with 255'
            )
    return LabelMap(*labels.shape, dict(zip(values.tolist(), counts.tolist())))
