"""Run a trained model on images and videos: pictures of the predictions, and the predictions as files.

    python tools/infer.py CONFIG CHECKPOINT photos/ --out-dir out

writes below --out-dir

    pictures/           the images with their predictions drawn; NAME.mp4 for a video
    predictions.json    boxes and masks in COCO's result format; scores of classes; or the names of label maps
    images.json         COCO's "images" and "categories", which image_id and category_id refer to
    label_maps/         segmentation: PNGs with the number of the class at each pixel

Of a video each frame is an image; "frame" is its number, from 0 on. Of a panoptic model the objects are written and
all segments drawn. A file that cannot be read is named and left
out; the others are finished, and the exit code is 1.
"""

import argparse
import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import mmcv
import numpy as np
from mmengine.config import DictAction
from mmengine.device import get_device
from rich.console import Console
from rich.progress import Progress

from mmdat.apis.predictor import Predictor
from mmdat.cli import key_value, run
from mmdat.config.load import load_config
from mmdat.errors import RunError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')


class Picture(NamedTuple):
    """One image, or one frame of a video; BGR."""

    path: Path
    image: np.ndarray
    frame: Optional[int] = None


# --- input -----------------------------------------------------------------------------------------


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


# --- output ----------------------------------------------------------------------------------------


class Writer:
    """Writes pictures and predictions below a directory; use it as a context manager."""

    def __init__(self, directory: Path, classes: list[str], score_thr: float, report: Any):
        self.directory = directory
        self.score_thr = score_thr
        self._report = report
        self._categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        self._images: list[dict] = []
        self._predictions: list[dict] = []
        self._names: dict[Path, str] = {}
        self._taken: set[str] = set()
        self._video: Optional[cv2.VideoWriter] = None
        self._video_path: Optional[Path] = None

    def __enter__(self) -> 'Writer':
        (self.directory / 'pictures').mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            self._video.release()
        tables = {
            'images.json': dict(images=self._images, annotations=[], categories=self._categories),
            'predictions.json': self._predictions,
        }
        for name, table in tables.items():
            (self.directory / name).write_text(json.dumps(table))

    def add(self, picture: Picture, sample: Any, drawn: np.ndarray) -> None:
        """Write what was predicted for a picture, and the drawing."""
        height, width = picture.image.shape[:2]
        entry = dict(id=len(self._images) + 1, file_name=str(picture.path), height=height, width=width)
        about = dict(image_id=entry['id'])
        if picture.frame is not None:
            entry['frame'] = about['frame'] = picture.frame
        self._images.append(entry)
        name = self._name(picture.path)
        if 'pred_instances' in sample:
            self._predictions += [dict(about, **found) for found in instances(sample.pred_instances, self.score_thr)]
        elif 'pred_sem_seg' in sample:
            map_name = f'label_maps/{_numbered(name, picture.frame)}.png'
            labels = sample.pred_sem_seg.data[0].numpy()
            dtype = np.uint8 if len(self._categories) <= 256 else np.uint16
            _write_image(self.directory / map_name, labels.astype(dtype))
            self._predictions.append(dict(about, label_map=map_name))
        else:
            scores = sample.pred_score.tolist()
            best = int(np.argmax(scores))
            self._predictions.append(
                dict(
                    about,
                    category_id=best + 1,
                    category=self._categories[best]['name'],
                    score=scores[best],
                    scores=scores,
                )
            )
        self._write_drawing(picture, name, drawn)

    def _name(self, path: Path) -> str:
        """The file's name without suffix, or with a number where another folder or suffix has the same."""
        if path not in self._names:
            name, number = path.stem, 1
            while name in self._taken:
                number += 1
                name = f'{path.stem}_{number}'
            self._taken.add(name)
            self._names[path] = name
        return self._names[path]

    def _write_drawing(self, picture: Picture, name: str, drawn: np.ndarray) -> None:
        if picture.frame is None:
            _write_image(self.directory / 'pictures' / f'{name}.jpg', drawn)
            return
        if self._video_path != picture.path:
            self._open_video(picture, name)
        if self._video is None:
            _write_image(self.directory / 'pictures' / f'{_numbered(name, picture.frame)}.jpg', drawn)
        else:
            self._video.write(drawn)

    def _open_video(self, picture: Picture, name: str) -> None:
        if self._video is not None:
            self._video.release()
        self._video_path = picture.path
        height, width = picture.image.shape[:2]
        rate = mmcv.VideoReader(str(picture.path)).fps or 25
        target = self.directory / 'pictures' / f'{name}.mp4'
        self._video = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*'mp4v'), rate, (width, height))
        if not self._video.isOpened():
            self._video = None
            target.unlink(missing_ok=True)
            self._report(f'OpenCV has no codec here to write {target}: the frames are written as images')


def instances(found: Any, score_thr: float) -> Iterator[dict[str, Any]]:
    """Boxes, and masks where there are any, in COCO's result format, without ``image_id``."""
    from mmdet.structures.mask import encode_mask_results

    found = found[found.scores >= score_thr].numpy()
    masks = encode_mask_results(found.masks) if 'masks' in found else [None] * len(found.labels)
    for (x1, y1, x2, y2), label, score, mask in zip(found.bboxes.tolist(), found.labels, found.scores, masks):
        result = dict(category_id=int(label) + 1, bbox=[x1, y1, x2 - x1, y2 - y1], score=float(score))
        if mask is not None:
            result['segmentation'] = dict(size=mask['size'], counts=mask['counts'].decode())
        yield result


def _numbered(name: str, frame: Optional[int]) -> str:
    return name if frame is None else f'{name}/{frame:06d}'


def _write_image(path: Path, image: np.ndarray) -> None:
    if not mmcv.imwrite(image, str(path)):
        raise RunError(f'cannot write {path}')


# --- command line ----------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; training leaves the one it used in its work directory')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='an image, a folder, a glob or a video')
    parser.add_argument('--out-dir', type=Path, default=Path('work_dirs/infer'), help='default: %(default)s')
    parser.add_argument('--device', help='such as cpu or cuda:0 (default: a GPU if there is one)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='leave out boxes and masks with a lower score (default: 0.3)'
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, help='images of equal size that follow each other (default: 1)'
    )
    parser.add_argument('--override', metavar='FILE', help='a config file merged over CONFIG, as in training')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, type=key_value, metavar='KEY=VALUE', help='as there'
    )
    args = parser.parse_args()
    if args.batch_size < 1:
        raise RunError(f'--batch-size must be at least 1, got {args.batch_size}')
    paths = find_inputs(args.inputs)
    if args.out_dir.exists() and not args.out_dir.is_dir():
        raise RunError(f'--out-dir must be a directory, but {args.out_dir} is a file')
    cfg = load_config(args.config, args.override, args.cfg_options)
    predictor = Predictor(cfg, args.checkpoint, args.device or get_device())

    with Progress(console=Console(stderr=True)) as progress:

        def report(text: str) -> None:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        reader = Reader(paths, report)
        task = progress.add_task('images', total=reader.count())
        with Writer(args.out_dir, predictor.classes, args.score_thr, report) as writer:
            for batch in batches(reader, args.batch_size):
                for picture, sample in zip(batch, predictor.predict([picture.image for picture in batch])):
                    writer.add(picture, sample, predictor.draw(picture.image, sample, args.score_thr))
                    progress.advance(task)
    print(f'pictures and predictions are in {args.out_dir.absolute()}')
    if reader.faults:
        faults = '; '.join(f'{path} ({why})' for path, why in reader.faults.items())
        raise RunError(f'{len(reader.faults)} of {len(paths)} files could not be read and were left out: {faults}')


if __name__ == '__main__':
    run(main)
