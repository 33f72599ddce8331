"""Boxes in PASCAL VOC's XML or YOLO's text files: the package globox reads them, and what follows is as for COCO.

Of YOLO's polygons it reads the boxes around them.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from mmdat.datasets.files import find_images, image_size
from mmdat.errors import RunError

from . import coco
from .layout import LAYOUT_HELP, Layout, require


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
        found = [(path, _parsed(globox.Annotation.from_xml, path)) for path in _xml_files(file, place)]
        own = sorted({box.label for _, annotation in found for box in annotation.boxes})
        if not names:  # the training part is read first
            names.extend(own)
        unknown = [name for name in own if name not in names]
        if unknown:
            raise RunError(f'{file} has objects of {", ".join(unknown)}, but the training data have none of them')
        return _as_coco(globox, [annotation for _, annotation in found], {name: name for name in names})

    return coco.complete(layout, read)


def complete_yolo(layout: Layout) -> list[str]:
    """Set the datasets to YOLO's annotations; the classes are those of ``data.yaml`` or ``classes.txt``."""
    globox = _globox('YOLO')
    names = _yolo_names(layout.root)

    def read(file: Path, folder: Path) -> tuple[dict[str, Any], list[str]]:
        require(folder)
        found = []
        for image in find_images(folder):
            size, name = image_size(image), image.relative_to(folder)
            path = file / name.with_suffix('.txt')
            if size is None:
                raise RunError(f'{image} has no size that can be read from its head: save it as PNG or JPEG')
            height, width = size.loaded(layout.ignore_orientation)
            about = dict(image_id=str(name), image_size=(width, height))
            if path.is_file():
                found.append(_parsed(_read_yolo, path, globox=globox, **about))
            else:
                found.append(globox.Annotation(**about))
        strays = sorted({box.label for annotation in found for box in annotation.boxes if box.label not in names})
        if strays:
            raise RunError(
                f'{file} has objects of class {", ".join(strays)}, but there are names of {", ".join(names)}'
            )
        return _as_coco(globox, found, names)

    return coco.complete(layout, read)


def _read_yolo(path: Path, globox: ModuleType, **about: Any) -> Any:
    """Boxes of a file, or those around its polygons, which have more than a class, four numbers and a score."""
    numbers = max((len(line.split()) for line in path.read_text().splitlines()), default=0)
    read = globox.Annotation.from_yolo_seg if numbers > 6 else globox.Annotation.from_yolo_v5
    return read(path, **about)


def _globox(layout: str) -> ModuleType:
    try:
        import globox
    except ImportError as error:
        raise RunError(f'annotations of {layout} are read with the package globox: pip install globox') from error
    return globox


def _parsed(parse: Any, path: Path, **options: Any) -> Any:
    try:
        return parse(path, **options)
    except Exception as error:  # of its own and of float()
        reason = str(getattr(error, 'reason', None) or error or type(error).__name__).split('\n')[0].rstrip('.')
        raise RunError(f'{path} cannot be read ({reason}): correct it, or remove it') from error


def _xml_files(listed: Path, folder: Path) -> list[Path]:
    """The annotations that a list of names stands for, or all of a folder."""
    if listed.is_dir():
        files = sorted(path for path in listed.rglob('*.xml') if not path.name.startswith('.'))
    else:
        names = [line.split()[0] for line in listed.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
        files = [folder / f'{name}.xml' for name in names]
    if not files:
        raise RunError(f'{listed} names no XML files: {LAYOUT_HELP}')
    for file in files:
        require(file)
    return files


def _yolo_names(root: Path) -> dict[str, str]:
    """Names of the classes by their numbers in the files."""
    for path in (root / 'data.yaml', root / 'dataset.yaml', root / 'classes.txt'):
        if not path.is_file():
            continue
        if path.suffix == '.txt':
            names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]
        else:
            try:
                names = (yaml.safe_load(path.read_text(encoding='utf-8-sig')) or {}).get('names')
            except (yaml.YAMLError, ValueError, AttributeError) as error:
                raise RunError(f'{path} is no YAML file with names of the classes: correct it') from error
        numbered = names.items() if isinstance(names, dict) else enumerate(names or [])
        found = {str(number): str(name) for number, name in numbered}
        if not found:
            raise RunError(f'{path} names no classes: list them under names')
        return found
    raise RunError(f'there is neither data.yaml nor classes.txt in {root.absolute()}, which name the classes')


def _as_coco(globox: ModuleType, annotations: list[Any], names: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    ids = {label: number for number, label in enumerate(names, 1)}
    images = {annotation.image_id: number for number, annotation in enumerate(annotations, 1)}
    found = globox.AnnotationSet(annotations).to_coco(label_to_id=ids, imageid_to_id=images)
    found['categories'] = [dict(id=ids[label], name=name) for label, name in names.items()]
    for one in found['annotations']:
        one['bbox'] = list(one['bbox'])
    return found, ['converted to COCO format']
