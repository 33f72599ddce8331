"""Images and videos as a model gets them: files, folders and globs, read one picture after the other."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmdat.errors import RunError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')


class Picture(NamedTuple):
    """One image, as the config's pipeline loads it, or one frame of a video (BGR)."""

    path: Path
    loaded: Union[dict[str, Any], np.ndarray]
    frame: Optional[int] = None

    @property
    def image(self) -> np.ndarray:
        """What was loaded: ``(H, W, C)`` or ``(H, W)``, of any type."""
        return self.loaded['img'] if isinstance(self.loaded, dict) else self.loaded


def find_inputs(names: list[str]) -> list[Path]:
    """The files that names of files, folders and glob patterns stand for, each once.

    Raises:
        RunError: If a name stands for nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES + VIDEOS and file.is_file())
            if not files:
                raise RunError(f'the folder {path.absolute()} has no images or videos ({", ".join(IMAGES + VIDEOS)})')
        elif path.is_file():
            files = [path]
        elif path.exists():  # reading a device or a pipe may never end
            raise RunError(f'the input {path.absolute()} is neither a file nor a folder: name an image or a video')
        else:
            files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
            if not files:
                raise RunError(f'there is no input {path.absolute()}: name an image, a folder, a glob or a video')
        found.update(dict.fromkeys(files))
    return list(found)


class Reader:
    """Reads images and frames one after the other.

    Args:
        paths: The files.
        load: What loads an image file.
        report: What says a line to the user.
        max_pixels: Images of more pixels are left out.

    Attributes:
        faults: The files that could not be read, and why.
    """

    def __init__(self, paths: list[Path], load: Callable[[Path], dict[str, Any]], report: Any, max_pixels: float):
        self.paths = paths
        self.faults: dict[Path, str] = {}
        self._load, self._report, self._max_pixels = load, report, max_pixels

    def count(self) -> int:
        """How many pictures there will be if all can be read."""
        return sum(max(1, mmcv.VideoReader(str(path)).frame_cnt) if _is_video(path) else 1 for path in self.paths)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            if _is_video(path):
                yield from self._frames(path)
                continue
            try:
                self._check_size(path)
                yield Picture(path, self._load(path))
            except RunError as error:
                self.skip(path, str(error))

    def _check_size(self, path: Path) -> None:
        try:
            with Image.open(path) as image:
                pixels = image.width * image.height
        except Image.DecompressionBombError as error:
            raise RunError(str(error).split(', could be')[0]) from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            return  # not Pillow, but the pipeline says whether it can be read
        if pixels > self._max_pixels:
            raise RunError(f'it has {pixels:,} pixels, more than the {self._max_pixels:,.0f} of --max-pixels')

    def _frames(self, path: Path) -> Iterator[Picture]:
        number = -1
        video = mmcv.VideoReader(str(path))
        for number, image in enumerate(video):
            yield Picture(path, image, number)
        if number < 0:
            self.skip(path, 'it is no video that OpenCV can decode')
        elif number + 1 < video.frame_cnt:
            self._report(f'{path} announces {video.frame_cnt} frames, {number + 1} could be read')

    def skip(self, path: Path, why: str) -> None:
        """Leave a file out, and say why."""
        self.faults[path] = why
        self._report(f'skipped {path}: {why}')


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEOS


def batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    """Up to ``size`` pictures of equal shape that follow each other."""
    batch: list[Picture] = []
    for picture in pictures:
        if batch and (len(batch) == size or picture.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(picture)
    if batch:
        yield batch
