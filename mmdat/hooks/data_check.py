"""A hook that counts what a run will learn from, before it does."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdat.config.own_data.coco_fields import read_json
from mmdat.config.walk import dicts
from mmdat.datasets.coco_objects import coordinates_fault, is_read, mask_fault
from mmdat.datasets.files import in_threads, read_label_map
from mmdat.errors import RunError
from mmdat.registry import HOOKS

IGNORED = 255
ROWS = 20


class Counts(NamedTuple):
    """What a dataset hands out: objects, pixels or images per class, and the number of images."""

    unit: str
    of_class: np.ndarray
    images: int


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Count what the datasets of a run hand out, per class, and say it in a table at the start.

    The datasets are those that the run has built, so what they filter out is not counted: objects of a crowd, images
    without objects, labels that are ignored. Pixels are counted in whole label maps, before they are cropped. Datasets
    of other kinds than detection, segmentation and classification are left out.

    Args:
        notes: What else the log of a training should say about its data.

    Raises:
        RunError: Before anything is learnt, if there is nothing of any class, or boxes or masks have numbers that
            nothing could be computed with.
    """

    priority = 'VERY_HIGH'

    def __init__(self, notes: Sequence[str] = ()):
        self.notes = list(notes)

    def before_train(self, runner: Runner) -> None:
        for note in self.notes:
            runner.logger.warning(note)
        loops = dict(train=getattr(runner, 'train_loop', None), val=getattr(runner, 'val_loop', None))
        self._check(runner, {part: loop for part, loop in loops.items() if hasattr(loop, 'dataloader')})

    def before_test(self, runner: Runner) -> None:
        self._check(runner, dict(test=runner.test_loop))

    def _check(self, runner: Runner, loops: dict[str, Any]) -> None:
        outcome: list[Optional[str]] = [None]
        if is_main_process():
            try:
                for part in loops:
                    check_evaluators(runner.cfg.get(f'{part}_evaluator'))
                self._report(runner, {part: loop.dataloader.dataset for part, loop in loops.items()})
            except RunError as error:
                outcome = [str(error)]
        broadcast_object_list(outcome)  # all processes of a run stop, or none
        if outcome[0]:
            raise RunError(outcome[0])

    def _report(self, runner: Runner, datasets: dict[str, Any]) -> None:
        counts = {part: count(dataset) for part, dataset in datasets.items()}
        counts = {part: one for part, one in counts.items() if one is not None}
        if not counts:
            return
        classes = list(datasets[next(iter(counts))].metainfo.get('classes') or [])
        runner.logger.info('\n'.join(table(counts, classes)))
        for part, one in counts.items():
            if not one.of_class.sum():
                raise RunError(
                    f'the dataset of {part}_dataloader has {one.images} images, but no {one.unit} of any class, so '
                    f'nothing can be {"learnt" if part == "train" else "evaluated"}: correct its annotations'
                )
        train = counts.get('train')
        if train is not None:
            self._warn(runner, train, classes)

    @staticmethod
    def _warn(runner: Runner, train: Counts, classes: Sequence[str]) -> None:
        if train.unit == 'pixels' and (train.of_class > 0).sum() < 2:
            raise RunError('the training label maps have pixels of one class only, so nothing can be told apart')
        absent = [name for name, number in zip(classes, train.of_class) if not number]
        if absent:
            some = ', '.join(absent[:ROWS]) + (f' and {len(absent) - ROWS} more' if len(absent) > ROWS else '')
            runner.logger.warning(
                f'{len(absent)} of {len(classes)} classes have no {train.unit} to learn from: {some}.'
            )


def count(dataset: Any) -> Optional[Counts]:
    """What a dataset hands out; None for kinds that are not known."""
    parts = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if parts[0] is not None:
        found = [count(part) for part in parts]
        if any(one is None for one in found) or len({(one.unit, len(one.of_class)) for one in found}) > 1:
            return None
        return Counts(found[0].unit, sum(one.of_class for one in found), sum(one.images for one in found))
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    if not classes or not hasattr(dataset, 'get_data_info'):
        return None
    first = dataset.get_data_info(0) if len(dataset) else dict(instances=[])
    # One at a time: a data set keeps them packed, and unpacked those of COCO take gigabytes.
    infos = map(dataset.get_data_info, range(len(dataset)))
    of_class = np.zeros(len(classes), dtype=np.int64)
    if 'instances' in first:
        _check_categories(dataset, classes)
        masks = _learns_masks(dataset)
        for info in infos:
            _check_objects(info, masks)
            for one in info['instances']:
                if not one.get('ignore_flag') and (not masks or is_read(one['mask'])):
                    of_class[one['bbox_label']] += 1
        return Counts('objects', of_class, len(dataset))
    if 'gt_label' in first:
        for info in infos:
            labels = np.atleast_1d(info['gt_label'])
            if not ((labels >= 0) & (labels < len(classes))).all():
                raise RunError(
                    f'{info.get("img_path")} has the label {info["gt_label"]}, but there are {len(classes)} classes, '
                    f'numbered from 0: correct the annotations, or metainfo.classes'
                )
            of_class[labels] += 1
        return Counts('images', of_class, len(dataset))
    if 'seg_map_path' in first:
        return _count_pixels(dataset, first, [Path(info.get('seg_map_path') or '') for info in infos], len(classes))
    return None


def _check_categories(dataset: Any, classes: Sequence[str]) -> None:
    """mmdet numbers the categories that it finds: where a class has none, those behind it get labels of others."""
    found = getattr(dataset, 'cat_ids', None)
    if found and len(found) != len(classes):
        raise RunError(
            f'{dataset.ann_file} has categories for {len(found)} of the {len(classes)} classes that the config names, '
            f'so labels would be those of other classes: train with --override configs/own_data/coco_folder.py, which '
            f'takes the classes from the file, or name them in metainfo.classes and num_classes'
        )


def _learns_masks(dataset: Any) -> bool:
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    return any(getattr(step, 'with_mask', False) for step in steps)


def _check_objects(info: dict, masks: bool) -> None:
    """Refuse boxes and masks of an image that pycocotools would not survive, and objects without a mask."""
    height, width = info.get('height'), info.get('width')
    for one in info['instances']:
        if masks and 'mask' not in one:
            raise RunError(
                f'an object in {info["img_path"]} has no segmentation, but the config learns masks: add it, or choose '
                f'a detector of boxes'
            )
        fault = _fault(one, height, width, 'mask')
        if fault:
            raise RunError(f'an object in {info["img_path"]} has {fault}')


def check_evaluators(evaluators: Any) -> None:
    """Refuse the same in annotations that metrics read from JSON files, all of which they encode.

    Raises:
        RunError: For the first of them.
    """
    for metric in dicts(evaluators):
        path = Path(str(metric.get('ann_file') or ''))
        if path.suffix != '.json' or not path.is_file():
            continue
        data, _ = read_json(path, path.parent)
        images = {image.get('id'): image for image in data.get('images', [])}
        for one in data.get('annotations', []):
            image = images.get(one.get('image_id'), {})
            fault = _fault(one, image.get('height'), image.get('width'), 'segmentation')
            if fault:
                raise RunError(f'the annotation {one.get("id")} of {path}, in {image.get("file_name")}, has {fault}')


def _fault(one: dict, height: Optional[int], width: Optional[int], mask: str) -> Optional[str]:
    """What is wrong with the numbers of an object in an image of a known size, if anything."""
    if not height or not width:
        return None
    return coordinates_fault(one.get('bbox', []), 'bbox', height, width) or mask_fault(one.get(mask), height, width)


def _count_pixels(dataset: Any, first: dict, paths: list[Path], number: int) -> Optional[Counts]:
    table = _labels_of_values(dataset, first) if all(path.is_file() for path in paths) else None
    if table is None:
        return None
    pixels = np.zeros(256, dtype=np.int64)
    for path, label_map in zip(paths, in_threads(read_label_map, paths)):
        if min(label_map.height, label_map.width) < 2:
            raise RunError(f'{path} has a side of one pixel, which mmseg loses: take it out of the dataset')
        for value, amount in label_map.pixels.items():
            label = table[value]
            if number <= label != IGNORED:
                raise RunError(
                    f'{path} has the value {value}, which is loaded as label {label}, but there are {number} classes: '
                    f'correct the map, or map its values with label_map or reduce_zero_label (docs/custom_data.md)'
                )
            pixels[label] += amount
    return Counts('pixels', pixels[:number], len(paths))


def _labels_of_values(dataset: Any, info: dict) -> Optional[np.ndarray]:
    """The label that each value of a map becomes: what the pipeline's own loader makes of a map of all values."""
    loaders = [step for step in dataset.pipeline.transforms if type(step).__name__ == 'LoadAnnotations']
    if not loaders:
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = f'{directory}/values.png'
        cv2.imwrite(path, np.arange(256, dtype=np.uint8).reshape(16, 16))
        results = loaders[0](dict(info, seg_map_path=path, seg_fields=[]))
    return results['gt_seg_map'].ravel()


def table(counts: dict[str, Counts], classes: Sequence[str]) -> list[str]:
    """Lines of a table: a row per class, a column per part."""
    units = next(iter(counts.values())).unit
    numbers = np.stack([one.of_class for one in counts.values()], axis=1)
    width = max([len(name) for name in classes[:ROWS]] + [len('images in all')])
    row = lambda name, values: name.ljust(width) + ''.join(f'{value:>15,}' for value in values)  # noqa: E731
    lines = [f'What the run works on, {units} per class:', ' ' * width + ''.join(f'{part:>15}' for part in counts)]
    lines += [row(name, values) for name, values in zip(classes[:ROWS], numbers.tolist())]
    if len(classes) > ROWS:
        lines.append(row(f'{len(classes) - ROWS} others', numbers[ROWS:].sum(0).tolist()))
    if units != 'images':
        lines.append(row('images in all', [one.images for one in counts.values()]))
    return lines
