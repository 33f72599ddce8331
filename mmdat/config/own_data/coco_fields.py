"""The fields of annotations in COCO format: those that can be completed are, the rest is named in a sentence."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from pycocotools import mask as coco_mask

from mmdat.datasets.coco_objects import coordinates_fault, encoded, polygons_read, rle_fault
from mmdat.datasets.files import image_size, in_threads
from mmdat.errors import RunError

from .layout import LAYOUT_HELP, printable

LARGEST_ID = 2**63  # COCO's evaluation keeps ids in arrays


@dataclass
class Completed:
    """Annotations with all fields.

    Attributes:
        data: ``images``, ``annotations``, ``categories``.
        file: The file that they were read from.
        folder: The folder of the images.
        changes: What was completed.
        masks: Whether masks are learnt.
        unturned: Whether sizes are those of the files as stored, whatever turn EXIF data ask for.
        written: The file that has them now.
    """

    data: dict[str, Any]
    file: Path
    folder: Path
    changes: list[str] = field(default_factory=list)
    masks: bool = False
    unturned: bool = False
    written: Optional[Path] = None

    @property
    def classes(self) -> list[str]:
        return [category['name'] for category in self.data['categories']]

    def subset(self, ids: list[int]) -> 'Completed':
        """The same, of some images."""
        chosen = set(ids)
        data = dict(
            self.data,
            images=[image for image in self.data['images'] if image['id'] in chosen],
            annotations=[one for one in self.data['annotations'] if one['image_id'] in chosen],
        )
        return replace(self, data=data)

    @staticmethod
    def joined(parts: list['Completed']) -> 'Completed':
        """Several as one: images are numbered anew, their names have their folders."""
        images, annotations = [], []
        numbers = {category['name']: category['id'] for category in parts[0].data['categories']}
        for part in parts:
            names = {category['id']: category['name'] for category in part.data['categories']}
            shift = len(images) + 1
            new = {image['id']: shift + number for number, image in enumerate(part.data['images'])}
            for image in part.data['images']:
                name = str((part.folder / image['file_name']).absolute())
                images.append(dict(image, id=new[image['id']], file_name=name))
            for one in part.data['annotations']:
                own = dict(id=len(annotations) + 1, image_id=new[one['image_id']])
                annotations.append(dict(one, **own, category_id=numbers[names[one['category_id']]]))
        data = dict(images=images, annotations=annotations, categories=parts[0].data['categories'])
        return Completed(data, parts[0].file, parts[0].folder, ['joined'], parts[0].masks)


def read_json(path: Path, folder: Path) -> tuple[Any, list[str]]:
    """What a JSON file in any encoding of Unicode holds, and what had to be changed to read it.

    Raises:
        RunError: If it is no JSON file.
    """
    content = path.read_bytes()
    plain = not content.startswith(b'\xef\xbb\xbf') and json.detect_encoding(content) == 'utf-8'
    try:
        return json.loads(content), [] if plain else ['written as UTF-8 without a byte-order mark']
    except RecursionError as error:
        raise RunError(f'{path} is no annotation file in COCO format: it is nested too deeply') from error
    except ValueError as error:
        reason = f'{type(error).__name__} {error}'.split('\n')[0]
        raise RunError(f'{path} is no annotation file in COCO format: {reason}') from error


def complete_fields(
    data: Any, done: list[str], file: Path, folder: Path, ignore_orientation: bool, masks: bool
) -> Completed:
    """Complete annotations, in place.

    Args:
        data: What the file holds.
        done: What was changed already.
        file: The file.
        folder: The folder of the images.
        ignore_orientation: Whether images are loaded without the turn that their EXIF data ask for.
        masks: Whether every object needs a mask.

    Raises:
        RunError: If something is wrong that has more than one way to be put right.
    """
    changes = Counter(dict.fromkeys(done, 0))
    _check_tables(data, file)
    categories = _categories(data, file, changes)
    completed = Completed(data, file, folder, masks=masks)
    images = _images(completed, ignore_orientation, changes)
    _annotations(completed, images, categories, changes)
    completed.changes = [f'{what} ({count})' if count else what for what, count in changes.items()]
    return completed


def _check_tables(data: Any, file: Path) -> None:
    for table in ('images', 'annotations', 'categories'):
        rows = data.get(table) if isinstance(data, dict) else None
        if not isinstance(rows, list):
            raise RunError(f'{file} is no annotation file in COCO format: it has no list "{table}"')
        if not rows:
            raise RunError(f'{file} lists no {table}: {LAYOUT_HELP}')
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise RunError(f'{file} is no annotation file in COCO format: {table}[{number}] is no object {{}}')


def _number(value: Any) -> Optional[float]:
    """A finite number, also from text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _key(value: Any) -> Any:
    """An id as it is compared: 1, 1.0 and "1" are one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # floats would join ids of 60 bits
    if isinstance(value, str) and value.isdecimal() and len(value) < 40:
        return int(value)
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else value if isinstance(value, str) else None


def _categories(data: dict[str, Any], file: Path, changes: Counter) -> dict[Any, int]:
    """Ids as they were, to ids as they are now."""
    found: dict[Any, int] = {}
    for number, category in enumerate(data['categories']):
        where = f'categories[{number}] of {file}'
        key = _key(category.get('id'))
        if key is None:
            raise RunError(f'{where} has the id {category.get("id")!r}, which is no number: number the categories')
        if key in found:
            raise RunError(f'{where} has the id {key} as another has: give each category an id of its own')
        name = category.get('name')
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not printable(str(name)):
            raise RunError(f'{where} has the name {name!r}, which is no text: name it')
        if printable(str(name)) != name:
            changes['category names as printable text'] += 1
            category['name'] = printable(str(name))
        found[key] = key if isinstance(key, int) else number + 1
        if category['id'] != found[key] or not isinstance(category['id'], int):
            changes['ids of categories as numbers'] += 1
            category['id'] = found[key]
    if len(set(found.values())) < len(found):
        found = {key: number for number, key in enumerate(found, 1)}
        for category, number in zip(data['categories'], found.values()):
            category['id'] = number
    names = Counter(category['name'] for category in data['categories'])
    name, count = names.most_common(1)[0]
    if count > 1:
        raise RunError(f'{file} lists {count} categories named {name}: give each a name of its own, or join them')
    return found


def _images(completed: Completed, ignore_orientation: bool, changes: Counter) -> dict[Any, dict]:
    """The images by their ids as they were."""
    data, file, folder = completed.data, completed.file, completed.folder
    found: dict[Any, dict] = {}
    for number, image in enumerate(data['images']):
        where = f'images[{number}] of {file}'
        key, name = _key(image.get('id')), image.get('file_name')
        if key is None:
            raise RunError(f'{where} has the id {image.get("id")!r}, which is no number: number the images')
        if not isinstance(name, str) or not name or '\0' in name:
            raise RunError(f'{where} has the file_name {name!r}: name the file of the image')
        if key in found:
            raise RunError(
                f'{where} ({name}) has the id {key} as {found[key]["file_name"]} has, so which annotations are whose '
                f'cannot be told: give each image an id of its own'
            )
        found[key] = image
    if not all(isinstance(key, int) and abs(key) < LARGEST_ID for key in found):
        for number, image in enumerate(found.values(), 1):
            image['id'] = number
        changes['new ids of images, as some are no numbers of 63 bits'] = len(found)
    elif any(image['id'] is not key for key, image in found.items() if not isinstance(image['id'], int)):
        for key, image in found.items():
            image['id'] = key
        changes['ids of images as numbers'] = len(found)
    for image in found.values():
        name = image['file_name']
        if '\\' in name and not (folder / name).is_file() and (folder / name.replace('\\', '/')).is_file():
            image['file_name'] = name.replace('\\', '/')
            changes['file_name with / in the place of \\'] += 1
    paths = [folder / image['file_name'] for image in found.values()]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise RunError(
            f'{len(missing)} of {len(paths)} images of {file} are missing; the first is {missing[0]}: put them there, '
            f'or correct file_name'
        )
    _sizes(completed, list(found.values()), paths, ignore_orientation, changes)
    return found


def _sizes(
    completed: Completed, images: list[dict], paths: list[Path], ignore_orientation: bool, changes: Counter
) -> None:
    """Compare height and width with those of the files."""
    turned, stored = None, None
    sizes = in_threads(image_size, paths)
    for image, path, size in zip(images, paths, sizes):
        own = tuple(_number(image.get(key)) for key in ('height', 'width'))
        given = all(own) and min(own) > 0
        if size is None:
            if not given:
                raise RunError(f'{path} is listed without height and width in {completed.file}: add them')
            continue
        loaded, raw = size.loaded(ignore_orientation), (size.height, size.width)
        if given and own == raw != loaded:
            stored = path
        elif given and own == loaded != raw:
            turned = path
        elif given and own != loaded:
            raise RunError(
                f'{completed.file} says that {path} has {own[0]:g}x{own[1]:g} pixels (height x width), but it has '
                f'{loaded[0]}x{loaded[1]}: its annotations fit one of the two; put the right image there, or take '
                f'height and width out of the file if the annotations fit the image'
            )
        if not given:
            changes['height and width of images from their files'] += 1
        elif own != (image['height'], image['width']) or not isinstance(image['height'], int):
            changes['height and width as numbers'] += 1
    if stored and turned:
        raise RunError(
            f'{completed.file} has the sizes of {stored} as stored, but of {turned} as turned by its EXIF data: store '
            f'the images turned and without such data'
        )
    completed.unturned = bool(stored)
    if stored:
        changes['images are loaded as stored, not turned as their EXIF data ask, since sizes are given so'] = 0
    for image, size in zip(images, sizes):
        if size is not None:
            image['height'], image['width'] = size.loaded(ignore_orientation or completed.unturned)


def _annotations(completed: Completed, images: dict[Any, dict], categories: dict[Any, int], changes: Counter) -> None:
    annotations = completed.data['annotations']
    without = 0
    for number, annotation in enumerate(annotations):
        _check_links(annotation, completed.file, images, categories, changes)
        image = images[_key(annotation['image_id'])]
        where = f'annotations[{number}] (id {annotation.get("id")}) of {completed.file}, in {image["file_name"]},'
        annotation.update(image_id=image['id'], category_id=categories[_key(annotation['category_id'])])
        _complete_flag(annotation, where, changes)
        _complete_mask(annotation, where, image, changes)
        without += not annotation.get('segmentation')
        _complete_box(annotation, where, image, changes)
        _complete_area(annotation, image, changes)
    if completed.masks and without:
        raise RunError(
            f'{without} of {len(annotations)} annotations in {completed.file} have no segmentation, but the config '
            f'learns masks: choose a detector of boxes, such as configs/retinanet_dat_t_1x_coco.py'
        )
    ids = [annotation.get('id') for annotation in annotations]
    if not all(type(one) is int and 0 < one < LARGEST_ID for one in ids) or len(set(ids)) < len(ids):
        changes['new ids of annotations'] = len(ids)  # COCO's own evaluation takes an object 0 for none
        for number, annotation in enumerate(annotations, 1):
            annotation['id'] = number


def _check_links(
    annotation: dict, file: Path, images: dict[Any, dict], categories: dict[Any, int], changes: Counter
) -> None:
    for table, found, key in (('categories', categories, 'category_id'), ('images', images, 'image_id')):
        value = annotation.get(key)
        if _key(value) in found:
            if not isinstance(value, int):
                changes[f'{key} as a number'] += 1
            continue
        if table == 'images':
            raise RunError(
                f'{file} has annotations with image_id {value}, but lists no such image: add it, or remove them'
            )
        listed = ', '.join(map(str, list(found)[:20]))
        raise RunError(
            f'{file} has annotations with category_id {value}, but its categories are {listed}: add the category, or '
            f'correct the annotations'
        )


def _complete_flag(annotation: dict, where: str, changes: Counter) -> None:
    for key in ('iscrowd', 'ignore'):
        value = annotation.get(key)
        if type(value) is int and value in (0, 1):
            continue
        if value is None:
            if key == 'iscrowd':
                changes['iscrowd 0'] += 1
                annotation[key] = 0
            continue
        number = int(value) if isinstance(value, bool) else _number(value)
        if number not in (0, 1):
            raise RunError(f'{where} has {key} {value!r}: set it to 0 or 1')
        changes[f'{key} as a number'] += 1
        annotation[key] = int(number)


def _numbers(values: list, where: str, what: str, image: dict, changes: Counter) -> list[float]:
    """Coordinates, seen to be finite numbers not far from their image."""
    fault = coordinates_fault(values, what, image['height'], image['width'])
    if fault:
        raise RunError(f'{where} has {fault}')
    if not any(isinstance(value, (str, bool)) for value in values):
        return values
    changes[f'{what} as numbers'] += 1
    return [float(value) for value in values]


def _complete_mask(annotation: dict, where: str, image: dict, changes: Counter) -> None:
    mask = annotation.get('segmentation')
    if not mask:
        annotation.pop('segmentation', None)
        return
    if isinstance(mask, dict):
        _complete_rle(mask, where, image, changes)
        return
    if not isinstance(mask, list):
        raise RunError(f'{where} has a segmentation that is neither polygons nor RLE: correct it')
    if not any(isinstance(polygon, (list, dict)) for polygon in mask):
        changes['a polygon in a list of polygons'] += 1
        mask = [mask]
    elif all(isinstance(point, list) and len(point) == 2 for point in mask) and len(mask) > 2:
        changes['points of a polygon in one list'] += 1
        mask = [[value for point in mask for value in point]]
    polygons = []
    for polygon in mask:
        if not isinstance(polygon, list):
            raise RunError(f'{where} has a polygon that is no list of numbers: correct it')
        if polygon and all(isinstance(point, list) and len(point) == 2 for point in polygon):
            changes['points of a polygon in one list'] += 1
            polygon = [value for point in polygon for value in point]
        polygons.append(_numbers(polygon, where, 'segmentation', image, changes))
    read = polygons_read(polygons)
    if read and len(read) < len(polygons):
        changes['polygons of fewer than three points, or of half a point, left out'] += len(polygons) - len(read)
        polygons = read  # which mmdet does, too, but no metric
    annotation['segmentation'] = polygons


def _complete_rle(mask: dict, where: str, image: dict, changes: Counter) -> None:
    size, counts = mask.get('size'), mask.get('counts')
    if isinstance(size, list) and [_key(value) for value in size] == [image['height'], image['width']]:
        mask['size'] = [image['height'], image['width']]
    if isinstance(counts, list):
        mask['counts'] = [_key(value) for value in counts]
    if any(type(value) is not int for values in (size, counts) if isinstance(values, list) for value in values):
        changes['RLE as whole numbers'] += 1
    fault = rle_fault(mask, image['height'], image['width'])
    if fault:
        raise RunError(f'{where} has {fault}')


def _complete_box(annotation: dict, where: str, image: dict, changes: Counter) -> None:
    box = annotation.get('bbox')
    if not box:
        mask = encoded(annotation.get('segmentation'), image['height'], image['width'])
        if mask is None:
            raise RunError(f'{where} has neither bbox nor segmentation: add one, or remove it')
        changes['bbox from the mask'] += 1
        box = [float(value) for value in coco_mask.toBbox(mask)]
    if not isinstance(box, list) or len(box) != 4:
        raise RunError(f'{where} has the bbox {str(box)[:80]}: it must be [x, y, width, height] in pixels')
    annotation['bbox'] = _numbers(box, where, 'bbox', image, changes)


def _complete_area(annotation: dict, image: dict, changes: Counter) -> None:
    area = annotation.get('area')
    number = _number(area)
    _, _, width, height = annotation['bbox']
    if number is not None and number > 0:
        if not isinstance(area, (int, float)):
            changes['area as a number'] += 1
            annotation['area'] = number
        return
    if width < 1 or height < 1:  # left out, whatever its area
        annotation['area'] = 0.0
        return
    mask = encoded(annotation.get('segmentation'), image['height'], image['width'])
    changes['area from the mask or box'] += 1
    annotation['area'] = float(coco_mask.area(mask)) if mask is not None else float(width * height)
    annotation['area'] = annotation['area'] or float(width * height)
