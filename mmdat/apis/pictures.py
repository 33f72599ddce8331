"""Images and videos as a model gets them: files, folders and globs, read one picture after the other."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import mmcv
import numpy as np

from mmdat.errors import RunError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')


class Picture(NamedTuple):
    """One image, or one frame of a video; BGR."""

    path: Path
    image: np.ndarray
    frame: Optional[int] = None


def find_inputs(names: list[str]) -> list[Path]:
    """The files that names of files, folders and glob patterns stand for, each once.

    Raises:
        RunError: If a name stands for nothing.
    """
    found: dict[Path, None] = {}
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES + VIDEOS)
            if not files:
                raise RunError(f'the folder {path.absolute()} has no images or videos ({", ".join(IMAGES + VIDEOS)})')
        elif path.exists():
            files = [path]
        else:
            files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
            if not files:
                raise RunError(f'there is no input {path.absolute()}: name an image, a folder, a glob or a video')
        found.update(dict.fromkeys(files))
    return list(found)


class Reader:
    """Reads images and frames one after the other; ``faults`` collects what could not be read, and why."""

    def __init__(self, paths: list[Path], report: Any):
        self.paths = paths
        self.faults: dict[Path, str] = {}
        self._report = report

    def count(self) -> int:
        """How many pictures there will be if all can be read."""
        return sum(max(1, mmcv.VideoReader(str(path)).frame_cnt) if _is_video(path) else 1 for path in self.paths)

    def __iter__(self) -> Iterator[Picture]:
        for path in self.paths:
            if _is_video(path):
                yield from self._frames(path)
                continue
            try:
                image = mmcv.imread(str(path))
            except OSError as error:
                self._skip(path, str(error.strerror))
                continue
            except cv2.error:  # raised for an empty file
                image = None
            if image is None:
                self._skip(path, 'it is no image that OpenCV knows')
            else:
                yield Picture(path, image)

    def _frames(self, path: Path) -> Iterator[Picture]:
        number = -1
        video = mmcv.VideoReader(str(path))
        for number, image in enumerate(video):
            yield Picture(path, image, number)
        if number < 0:
            self._skip(path, 'it is no video that OpenCV can decode')
        elif number + 1 < video.frame_cnt:
            self._report(f'{path} announces {video.frame_cnt} frames, {number + 1} could be read')

    def _skip(self, path: Path, why: str) -> None:
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
