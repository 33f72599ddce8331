"""Objects in PASCAL VOC's XML or YOLO's text files: the package globox reads them, and what follows is as for COCO."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import yaml

from mmdat.datasets.files import find_images, image_size
from mmdat.errors import RunError

from . import coco
from .layout import LAYOUT_HELP, Layout, class_names, require, text_lines


def complete_voc(layout: Layout) -> list[str]:
    """Set the datasets to VOC's annotations; the classes are the names of the training objects, sorted."""
    globox = _globox('PASCAL VOC')
    annotations = {
        dataset.ann_file: layout.root / dataset.data_prefix.pop('ann', 'Annotations/')
        for part in ('train', 'val', 'test')
        for dataset in layout.datasets(part)
    }
    names: list[str] = []

    def read(file: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
        place = annotations.get(str(file.relative_to(layout.root)), file) if file.is_file() else file
        found = []
        for path in _xml_files(file, place):
            with _reading(path):
                found.append(globox.Annotation.from_xml(path))
        own = sorted({box.label for annotation in found for box in annotation.boxes})
        if not names:  # the training part is read first
            names.extend(own)
        unknown = [name for name in own if name not in names]
        if unknown:
            raise RunError(f'{file} has objects of {", ".join(unknown)}, but the training data have none of them')
        return _as_coco(globox, found, {name: name for name in names})

    return coco.complete(layout, read)


def complete_yolo(layout: Layout) -> list[str]:
    """Set the datasets to YOLO's annotations; the classes are those of ``data.yaml`` or ``classes.txt``."""
    globox = _globox('YOLO')
    names = _yolo_names(layout.root)

    def read(file: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
        require(folder)
        objects: dict[Path, list[list[str]]] = {}
        for image in find_images(folder):
            path = file / image.relative_to(folder).with_suffix('.txt')
            objects[image] = _yolo_lines(path) if path.is_file() else []
        _check_kind(layout, file, [line for lines in objects.values() for line in lines])
        found, polygons = [], []
        for image, lines in objects.items():
            size, name = image_size(image), image.relative_to(folder)
            if size is None:
                raise RunError(f'{image} has no size that can be read from its head: save it as PNG or JPEG')
            height, width = size.loaded(layout.ignore_orientation)
            with _reading(file / name.with_suffix('.txt')):
                boxes = [_yolo_box(globox, line, (width, height)) for line in lines]
            found.append(globox.Annotation(str(name), (width, height), boxes))
            polygons += [_yolo_polygon(line, width, height) for line in lines]
        strays = sorted({box.label for annotation in found for box in annotation.boxes if box.label not in names})
        if strays:
            raise RunError(
                f'{file} has objects of class {", ".join(strays)}, but there are names of {", ".join(names)}'
            )
        data, changes = _as_coco(globox, found, names)
        for one, polygon in zip(data['annotations'], polygons):
            if polygon:
                one.update(segmentation=[polygon], area=None)
        return data, changes

    return coco.complete(layout, read)


def _yolo_lines(path: Path) -> list[list[str]]:
    """The fields of each object in a file: its class, and numbers."""
    return [line.split() for line in text_lines(path)]


def _check_kind(layout: Layout, file: Path, lines: list[list[str]]) -> None:
    """Refuse key points, and say what becomes of oriented boxes."""
    # x, y and whether it is visible, for each point behind the box
    points = [line[7::3] if len(line) > 6 and len(line) % 3 == 2 else [] for line in lines]
    visible = [all(value in ('0', '1', '2', '0.0', '1.0', '2.0') for value in one) for one in points]
    if _yolo_settings(layout.root).get('kpt_shape') or (lines and all(points) and all(visible)):
        raise RunError(
            f'{file} has key points, which no config for boxes and masks learns: leave the class and the four numbers '
            f'of the box in each line, and kpt_shape out of data.yaml'
        )
    if lines and all(len(line) == 9 for line in lines):
        layout.notes.append(
            f'{file} has four corners for each object, as oriented boxes are written: what is learnt are the upright '
            f'boxes around them, and the corners as masks where the config learns masks.'
        )


def _is_polygon(line: list[str]) -> bool:
    """Whether there are more numbers than a box has, and a score."""
    return len(line) > 6


def _yolo_box(globox: ModuleType, line: list[str], size: tuple[int, int]) -> Any:
    """The box of a line, or that around its polygon."""
    numbers = [float(value) for value in line[1:]]
    if not all(math.isfinite(value) and -1 <= value <= 2 for value in numbers[: None if _is_polygon(line) else 4]):
        raise ValueError(f'"{" ".join(line)[:60]}" has numbers that are no fractions of the image')
    kind = globox.BoundingBox
    return (kind.from_yolo_seg if _is_polygon(line) else kind.from_yolo_v5)(' '.join(line), image_size=size)


def _yolo_polygon(line: list[str], width: int, height: int) -> Optional[list[float]]:
    """The polygon of a line in pixels, ``[x1, y1, x2, y2, …]``; None for a box."""
    scale = (width, height)
    return [float(value) * scale[i % 2] for i, value in enumerate(line[1:])] if _is_polygon(line) else None


def _globox(layout: str) -> ModuleType:
    try:
        import globox
    except ImportError as error:
        raise RunError(f'annotations of {layout} are read with the package globox: pip install globox') from error
    return globox


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What globox makes of a file: a fault in it is one sentence."""
    try:
        yield
    except Exception as error:  # of its own and of float()
        reason = str(getattr(error, 'reason', None) or error or type(error).__name__).split('\n')[0].rstrip('.')
        raise RunError(f'{path} cannot be read ({reason}): correct it, or remove it') from error


def _xml_files(listed: Path, folder: Path) -> list[Path]:
    """The annotations that a list of names stands for, or all of a folder."""
    if listed.is_dir():
        files = sorted(path for path in listed.rglob('*.xml') if not path.name.startswith('.'))
    else:
        names = dict.fromkeys(line.split()[0] for line in text_lines(listed))  # each once
        files = [folder / f'{name}.xml' for name in names]
    if not files:
        raise RunError(f'{listed} names no XML files: {LAYOUT_HELP}')
    for file in files:
        require(file)
    return files


def _yolo_settings(root: Path) -> dict[str, Any]:
    """What ``data.yaml`` or ``dataset.yaml`` says; nothing where there is none."""
    path = _yolo_file(root, 'data.yaml', 'dataset.yaml')
    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, ValueError) as error:
        raise RunError(f'{path} is no YAML file with names of the classes: correct it') from error
    if not isinstance(settings, dict):
        raise RunError(f'{path} is no YAML file with names of the classes: correct it')
    return settings


def _yolo_file(root: Path, *names: str) -> Optional[Path]:
    return next((root / name for name in names if (root / name).is_file()), None)


def _yolo_names(root: Path) -> dict[str, str]:
    """Names of the classes by their numbers in the files."""
    path = _yolo_file(root, 'data.yaml', 'dataset.yaml', 'classes.txt')
    if path is None:
        raise RunError(f'there is neither data.yaml nor classes.txt in {root.absolute()}, which name the classes')
    names = class_names(path) if path.suffix == '.txt' else _yolo_settings(root).get('names')
    if not names or not isinstance(names, (list, dict)):
        raise RunError(f'{path} names no classes: list them under names')
    numbered = list(names.items() if isinstance(names, dict) else enumerate(names))
    if any(isinstance(part, (list, dict, set)) for pair in numbered for part in pair):
        raise RunError(f'{path} has classes whose names are no text: list them under names')
    return {str(number): str(name) for number, name in numbered}


def _as_coco(globox: ModuleType, annotations: list[Any], names: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    seen = Counter(annotation.image_id for annotation in annotations)
    if seen and max(seen.values()) > 1:
        raise RunError(f'several annotation files name the image {seen.most_common(1)[0][0]}: keep one of them')
    ids = {label: number for number, label in enumerate(names, 1)}
    images = {annotation.image_id: number for number, annotation in enumerate(annotations, 1)}
    found = globox.AnnotationSet(annotations).to_coco(label_to_id=ids, imageid_to_id=images)
    found['categories'] = [dict(id=ids[label], name=name) for label, name in names.items()]
    for one in found['annotations']:
        one['bbox'] = list(one['bbox'])
    return found, ['converted to COCO format']
