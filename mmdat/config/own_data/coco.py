"""Boxes and masks: annotations in COCO format."""

import json
import os
from pathlib import Path
from typing import Any, Callable, Optional

from mmengine.config import ConfigDict

from mmdat.datasets.files import ImageSize, held_out
from mmdat.errors import RunError

from ..walk import dicts
from .coco_fields import Completed, complete_fields, read_json
from .coco_geometry import check_boxes, check_masks, learnable, without_masks_as_crowd
from .layout import Layout, holds_files, require

#: From a file and the folder of its images to annotations in COCO format, and what was changed.
Reader = Callable[[Path, Path], tuple[Any, list[str]]]


def complete(layout: Layout, read: Reader = read_json) -> list[str]:
    """Set the datasets to complete annotations; returns the classes, the categories in the order of the file."""
    _check_type(layout)
    train = _part(layout, 'train', read)
    classes = train[0].classes
    for one in train[1:]:
        _check_same(one, train[0])
    if layout.val_fraction:
        train, val = _split(layout, train)
    elif _is_missing(layout):
        layout.without_validation = True
        val = []
    else:
        val = _part(layout, 'val', read)
    for one in val:
        _check_same(one, train[0])
    for part, found in (('train', train), ('val', val)):
        objects = sum(_check_learnable(layout, one, part) for one in found)
        if found and not objects:
            raise _nothing(found[0])
        if found:
            _place(layout, part, found)
    _complete_test(layout, train[0], read)
    return classes


def _check_type(layout: Layout) -> None:
    types = [dataset.type for dataset in layout.datasets('train')]
    if any('Panoptic' in str(one) for one in types):
        raise RunError("classes_from='coco' reads boxes and masks, not panoptic annotations: choose another config")


def _listed(value: Any) -> list[str]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _sources(layout: Layout, part: str) -> list[tuple[ConfigDict, Path, Path]]:
    """The annotation files of a part, each with its dataset and the folder of its images."""
    found = []
    for dataset in layout.datasets(part):
        files, folders = _listed(dataset.ann_file), _listed(dataset.data_prefix.img)
        if len(folders) == 1:
            folders *= len(files)
        if len(folders) != len(files):
            raise RunError(
                f'{part}_dataloader.dataset has {len(files)} files in ann_file, but {len(folders)} folders in '
                f'data_prefix.img: name one folder, or one for each file'
            )
        found += [(dataset, layout.root / file, layout.root / folder) for file, folder in zip(files, folders)]
    return found


def _is_missing(layout: Layout) -> bool:
    """Whether there is nothing of validation data: neither annotations nor folders of images."""
    return not any(file.exists() or holds_files(folder) for _, file, folder in _sources(layout, 'val'))


def _part(layout: Layout, part: str, read: Reader) -> list[Completed]:
    return [
        _complete_file(layout, part, file, folder, _learns_masks(dataset), read)
        for dataset, file, folder in _sources(layout, part)
    ]


def _learns_masks(dataset: ConfigDict) -> bool:
    return any(transform.get('with_mask') for transform in dataset.pipeline)


def _complete_file(layout: Layout, part: str, file: Path, folder: Path, masks: bool, read: Reader) -> Completed:
    require(file)
    completed = complete_fields(*read(file, folder), file, folder, layout.ignore_orientation, masks)
    if completed.unturned and not layout.ignore_orientation:
        layout.load_unturned()
    images = completed.data['images']
    sizes = [ImageSize(image['height'], image['width'], False) for image in images]
    layout.check_images(part, [folder / image['file_name'] for image in images], sizes)
    check_boxes(completed)
    if completed.changes:
        layout.notes.append(f'{file} is completed in a copy: {"; ".join(completed.changes)}.')
    return completed


def _check_same(one: Completed, first: Completed) -> None:
    # mmdet numbers labels in the order of the file.
    if one.classes != first.classes:
        raise RunError(
            f'{one.file} lists the categories {one.classes}, but the training annotations {first.classes}: both must '
            f'list the same in the same order'
        )


def _split(layout: Layout, train: list[Completed]) -> tuple[list[Completed], list[Completed]]:
    """Hold a random part of the training images back for validation."""
    kept, chosen = [], []
    for one in train:
        ids = [image['id'] for image in one.data['images']]
        if len(ids) < 2:
            raise RunError(f'{one.file} lists only {len(ids)} image, so none can be held back for validation')
        out = held_out(ids, layout.val_fraction, layout.val_seed)
        kept.append(one.subset([number for number in ids if number not in out]))
        chosen.append(one.subset(sorted(out)))
    layout.notes.append(
        f'{sum(len(one.data["images"]) for one in chosen)} images are held back from training for validation.'
    )
    return kept, chosen


def _place(layout: Layout, part: str, found: list[Completed]) -> None:
    """Have the datasets of a part, and its metrics, read what was completed."""
    datasets = layout.datasets(part)
    if len(found) == len(datasets) and (part == 'train' or len(found) == 1):
        targets = list(zip(datasets, found))
    else:  # a metric has one file, and a dataset too
        targets = [(datasets[0], Completed.joined(found))]
        layout.cfg[f'{part}_dataloader'].dataset = datasets[0]
    for number, (dataset, one) in enumerate(targets):
        without_masks_as_crowd(one)
        folder = one.folder
        if one.changes or len(found) != len(targets) or layout.val_fraction:
            name = part if len(targets) == 1 else f'{part}_{number}'
            dataset.ann_file = str(_write(layout.work_dir / 'annotations' / f'{name}.json', one.data))
        elif isinstance(dataset.ann_file, (list, tuple)):
            dataset.ann_file = dataset.ann_file[0]
        inside = folder.is_relative_to(layout.root)
        dataset.data_prefix.img = str(folder.relative_to(layout.root) if inside else folder.absolute()) + '/'
        one.written = layout.root / dataset.ann_file
    for metric in dicts(layout.cfg.get(f'{part}_evaluator')):
        if 'ann_file' in metric:
            metric.ann_file = str(targets[0][1].written)


def _write(path: Path, data: dict[str, Any]) -> Path:
    """Write annotations, whole or not at all: several processes of a run write the same."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    part.write_text(json.dumps(data))
    os.replace(part, path)
    return path


def _check_learnable(layout: Layout, one: Completed, part: str) -> int:
    """How many objects are trained on; notes what drops out."""
    counts = learnable(one)
    total = len(one.data['annotations'])
    dropped = {reason: count for reason, count in counts.items() if reason != 'learnt' and count}
    if dropped and counts['learnt']:
        listed = ', '.join(f'{count} {reason}' for reason, count in dropped.items())
        layout.notes.append(f'{sum(dropped.values())} of {total} objects of {one.file} are not used: {listed}.')
    beside = check_masks(one)
    if beside:
        layout.notes.append(beside)
    with_objects = {annotation['image_id'] for annotation in one.data['annotations']}
    without = len(one.data['images']) - len(with_objects)
    if part == 'train' and without and counts['learnt']:
        layout.notes.append(
            f'{without} of {len(one.data["images"])} images of {one.file} have no objects, and are not trained on '
            f'(filter_cfg of the dataset).'
        )
    return counts['learnt']


def _nothing(one: Completed) -> RunError:
    counts = learnable(one)
    listed = ', '.join(f'{count} {reason}' for reason, count in counts.items() if reason != 'learnt' and count)
    return RunError(
        f'{one.file} has no object that can be learnt, of {len(one.data["annotations"])}: {listed}; correct them'
    )


def _complete_test(layout: Layout, train: Completed, read: Reader) -> None:
    """Set up test data where they can be used; where not, training goes on without."""
    if layout.test_is_val:
        return
    for dataset, file, folder in _sources(layout, 'test'):
        fault: Optional[str] = None
        try:
            one = _complete_file(layout, 'test', file, folder, _learns_masks(dataset), read)
            _check_same(one, train)
        except RunError as error:
            fault = str(error)
        if fault:
            layout.notes.append(f'The test data cannot be evaluated, which training does without: {fault}.')
            return
    _place(layout, 'test', _part(layout, 'test', read))
