"""Classes from a dataset's own annotations: what a config asks for with ``classes_from`` (see configs/own_data)."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from mmdat.errors import RunError

IGNORED_LABEL = 255
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
# Where classes.txt names the classes, so many label maps are looked at to see that they fit.
CHECKED_MAPS = 200
_LAYOUT = 'docs/custom_data.md shows where files are looked for, and how to name other places'


def complete_config(cfg: Config) -> list[str]:
    """Put a config's datasets below its ``data_root``, with the classes that ``classes_from`` says, in place.

    ``classes_from`` is taken out of the config. It is one of:

    - ``'coco'``: the categories of ``ann_file``; ``ann_file`` of COCO's metrics follows, too.
    - ``'label_maps'``: ``classes.txt`` in the data root or else the labels of the training maps; the suffix of the
      images follows from the files. Labels are classes as they are, 255 is ignored.
    - ``'class_folders'``: the names of the folders of the training images.

    Returns:
        The names of the classes.

    Raises:
        RunError: If files are missing, or training and validation do not agree.
    """
    kind = cfg.pop('classes_from')
    if kind not in _READERS:
        raise RunError(f'classes_from must be one of {", ".join(_READERS)}, got {kind!r}')
    datasets = {part: _innermost(cfg[f'{part}_dataloader'].dataset) for part in ('train', 'val', 'test')}
    root = Path(os.path.expanduser(cfg.data_root))
    if not root.is_dir():
        raise RunError(
            f'there is no directory {root.absolute()} with your data: name yours with --data DIRECTORY; {_LAYOUT}'
        )
    for dataset in datasets.values():
        dataset.data_root = str(root)
    classes = _READERS[kind](cfg, root, datasets)
    palette = [tuple(colour) for colour in np.random.RandomState(0).randint(0, 256, (len(classes), 3)).tolist()]
    for dataset in datasets.values():
        dataset.metainfo = dict(classes=tuple(classes), palette=palette)
    print_log(f'{len(classes)} classes from {root.absolute()}: {", ".join(classes)}', logger='current')
    return classes


def _innermost(dataset: ConfigDict) -> ConfigDict:
    while 'dataset' in dataset:
        dataset = dataset.dataset
    return dataset


# --- COCO format -----------------------------------------------------------------------------------


def _coco(cfg: Config, root: Path, datasets: dict[str, ConfigDict]) -> list[str]:
    if 'Panoptic' in datasets['train'].type:
        raise RunError("classes_from='coco' reads boxes and masks, not panoptic annotations: choose another config")
    classes = {part: _categories(root, dataset) for part, dataset in datasets.items()}
    for part in ('val', 'test'):
        # mmdet numbers labels in the order of the file.
        if classes[part] != classes['train']:
            raise RunError(
                f'{root / datasets[part].ann_file} lists the categories {classes[part]}, but the training '
                f'annotations {classes["train"]}: both must list the same in the same order'
            )
        for metric in _dicts(cfg.get(f'{part}_evaluator')):
            if 'ann_file' in metric:
                metric.ann_file = str(root / datasets[part].ann_file)
    return classes['train']


def _categories(root: Path, dataset: ConfigDict) -> list[str]:
    path = root / dataset.ann_file
    _require(path)
    try:
        annotations = json.loads(path.read_text())
        categories = {category['id']: category['name'] for category in annotations['categories']}
        images = {image['id']: image['file_name'] for image in annotations['images']}
        objects = annotations['annotations']
        used = Counter((annotation['category_id'], annotation['image_id']) for annotation in objects)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f'{path} is no annotation file in COCO format: {type(error).__name__} {error}') from error
    for what, listed in dict(categories=categories, images=images, annotations=objects).items():
        if not listed:
            raise RunError(f'{path} lists no {what}: {_LAYOUT}')
    for category, image in used:
        if category not in categories:
            raise RunError(
                f'{path} has annotations with category_id {category}, but its categories are '
                f'{", ".join(map(str, categories))}: add the category, or correct the annotations'
            )
        if image not in images:
            raise RunError(
                f'{path} has annotations with image_id {image}, but lists no such image: add it, or remove them'
            )
    folder = root / dataset.data_prefix.img
    missing = [name for name in images.values() if not (folder / name).is_file()]
    if missing:
        raise RunError(
            f'{len(missing)} of {len(images)} images of {path} are missing; the first is {folder / missing[0]}: put '
            f'them there, or correct file_name'
        )
    if any(transform.get('with_mask') for transform in dataset.pipeline):
        without = sum(not annotation.get('segmentation') for annotation in objects)
        if without:
            raise RunError(
                f'{without} of {len(objects)} annotations in {path} have no segmentation, but the config '
                f'learns masks: choose a detector of boxes, such as configs/retinanet_dat_t_1x_coco.py'
            )
    return list(categories.values())


# --- images and label maps -------------------------------------------------------------------------


def _label_maps(cfg: Config, root: Path, datasets: dict[str, ConfigDict]) -> list[str]:
    maps = {part: _pair(root, dataset) for part, dataset in datasets.items()}
    for node in _dicts([cfg.get(key) for key in cfg if key.endswith(('_pipeline', '_dataloader'))]):
        if 'reduce_zero_label' in node:
            node.reduce_zero_label = False
    names = root / 'classes.txt'
    if names.is_file():
        classes = [line.strip() for line in names.read_text().splitlines() if line.strip()]
        step = -(-len(maps['train']) // CHECKED_MAPS)
        largest, path = _largest_label(maps['train'][::step])
        if largest >= len(classes):
            raise RunError(
                f'{path} has the label {largest}, but {names} names only {len(classes)} classes, from label '
                f'0 on: add names, or mark what belongs to no class with {IGNORED_LABEL}'
            )
        return classes
    largest, _ = _largest_label(maps['train'])
    return [f'class {label}' for label in range(largest + 1)]


def _pair(root: Path, dataset: ConfigDict) -> list[Path]:
    """The label maps of a dataset, one for each image; sets the suffix of the images."""
    images, labels = root / dataset.data_prefix.img_path, root / dataset.data_prefix.seg_map_path
    _require(images)
    _require(labels)
    files = sorted(path for path in images.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    suffixes = Counter(path.suffix for path in files)
    if len(suffixes) != 1:
        found = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.items()) or 'none'
        raise RunError(f'the images in {images} must all have one suffix, such as .jpg; there are: {found}')
    (dataset.img_suffix,) = suffixes
    maps = [(labels / path.relative_to(images)).with_suffix(dataset.seg_map_suffix) for path in files]
    missing = [path for path in maps if not path.is_file()]
    if missing:
        raise RunError(
            f'{len(missing)} of {len(maps)} images in {images} have no label map; the first that is '
            f'missing is {missing[0]}'
        )
    return maps


def _largest_label(paths: list[Path]) -> Any:
    largest, where = -1, None
    for path in paths:
        labels = mmcv.imread(str(path), flag='unchanged', backend='pillow')
        if labels.ndim != 2:
            raise RunError(
                f'{path} is a colour picture, not a label map: it must have one channel, with the number '
                f'of a class at each pixel'
            )
        labels = labels[labels != IGNORED_LABEL]
        if labels.size and labels.max() > largest:
            largest, where = int(labels.max()), path
    if where is None:
        raise RunError(f'no pixel of the label maps in {paths[0].parent} has a class: all are {IGNORED_LABEL}')
    return largest, where


# --- a folder per class ----------------------------------------------------------------------------


def _class_folders(cfg: Config, root: Path, datasets: dict[str, ConfigDict]) -> list[str]:
    folders = {}
    for part, dataset in datasets.items():
        path = root / dataset.split
        _require(path)
        folders[part] = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        if not folders[part]:
            raise RunError(f'{path} has no folders, one for each class: {_LAYOUT}')
        if folders[part] != folders['train']:
            raise RunError(
                f'{path} has the folders {folders[part]}, but {root / datasets["train"].split} has '
                f'{folders["train"]}: both must have a folder for each class'
            )
    return folders['train']


_READERS = dict(coco=_coco, label_maps=_label_maps, class_folders=_class_folders)


def _dicts(node: Any) -> Iterator[dict]:
    """All dicts in a config, however deep."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _dicts(child)


def _require(path: Path) -> None:
    if not path.exists():
        raise RunError(f'there is no {path.absolute()}: {_LAYOUT}')
