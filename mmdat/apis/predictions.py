"""Predictions as files: pictures with what was found, tables in COCO's formats, label maps."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import cv2
import mmcv
import numpy as np

from mmdat.errors import RunError

from .pictures import Picture


class JsonTable:
    """A JSON file with a list that grows; it is whole after each addition."""

    def __init__(self, path: Path, head: str = '[', tail: str = ']'):
        self._file = path.open('wb')
        self._tail = tail.encode()
        self._comma = b''
        self._file.write(head.encode())
        self._end = self._file.tell()
        self.add([])

    def add(self, entries: list[dict]) -> None:
        """Add entries, and have them on the disk."""
        self._file.seek(self._end)
        for entry in entries:
            self._file.write(self._comma + json.dumps(entry).encode())
            self._comma = b',\n'
        self._end = self._file.tell()
        self._file.write(self._tail)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Writer:
    """Writes pictures and predictions below a directory, file by file; use it as a context manager."""

    def __init__(self, directory: Path, classes: list[str], score_thr: float, report: Any):
        self.directory = directory
        self.score_thr = score_thr
        self._report = report
        self._categories = [dict(id=i, name=name) for i, name in enumerate(classes, 1)]
        self._count = 0
        self._names: dict[Path, str] = {}
        self._taken: set[str] = set()
        self._video: Optional[cv2.VideoWriter] = None
        self._video_path: Optional[Path] = None

    def __enter__(self) -> 'Writer':
        self.directory.mkdir(parents=True, exist_ok=True)
        head = json.dumps(dict(annotations=[], categories=self._categories))[:-1] + ', "images": ['
        self._images = JsonTable(self.directory / 'images.json', head, ']}')
        self._predictions = JsonTable(self.directory / 'predictions.json')
        return self

    def __exit__(self, *error: Any) -> None:
        if self._video is not None:
            self._video.release()
        self._images.close()
        self._predictions.close()

    def add(self, picture: Picture, sample: Any, drawn: Optional[np.ndarray]) -> None:
        """Write what was predicted for a picture, and the drawing, if there is one."""
        height, width = picture.image.shape[:2]
        entry = dict(id=self._count + 1, file_name=str(picture.path), height=height, width=width)
        about = dict(image_id=entry['id'])
        if picture.frame is not None:
            entry['frame'] = about['frame'] = picture.frame
        name = self._name(picture.path)
        found = self._found(picture, sample, name)
        self._count += 1
        self._images.add([entry])
        self._predictions.add([dict(about, **one) for one in found])
        if drawn is not None:
            self._write_drawing(picture, name, drawn)

    def _found(self, picture: Picture, sample: Any, name: str) -> list[dict[str, Any]]:
        if 'pred_instances' in sample:
            return list(instances(sample.pred_instances, self.score_thr))
        if 'pred_sem_seg' in sample:
            map_name = f'label_maps/{_numbered(name, picture.frame)}.png'
            labels = sample.pred_sem_seg.data[0].numpy()
            dtype = np.uint8 if len(self._categories) <= 256 else np.uint16
            _write_image(self.directory / map_name, labels.astype(dtype))
            return [dict(label_map=map_name)]
        scores = sample.pred_score.tolist()
        best = int(np.argmax(scores))
        category = self._categories[best]['name']
        return [dict(category_id=best + 1, category=category, score=scores[best], scores=scores)]

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
            self._open_video(picture, name, drawn)
        if self._video is None:
            _write_image(self.directory / 'pictures' / f'{_numbered(name, picture.frame)}.jpg', drawn)
        else:
            self._video.write(drawn)

    def _open_video(self, picture: Picture, name: str, drawn: np.ndarray) -> None:
        if self._video is not None:
            self._video.release()
        self._video_path = picture.path
        height, width = drawn.shape[:2]
        rate = mmcv.VideoReader(str(picture.path)).fps or 25
        (self.directory / 'pictures').mkdir(exist_ok=True)
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
