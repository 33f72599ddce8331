"""Segmentation: images and label maps."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from mmengine.config import ConfigDict

from mmdat.datasets.files import (
    IMAGE_SUFFIXES,
    JPEG_SUFFIXES,
    LabelMap,
    find_images,
    held_out,
    image_size,
    in_threads,
    pair_files,
    read_label_map,
)
from mmdat.errors import RunError

from .layout import LAYOUT_HELP, Layout, class_names, holds_files, require

IGNORED = 255
Pairs = list[tuple[Path, Path]]


def complete(layout: Layout) -> list[str]:
    """Set the datasets to the files below the root; returns the classes."""
    values = ValueMap(layout)
    pairs: dict[str, Pairs] = {}
    for part in ('train', 'val', 'test'):
        for dataset in layout.datasets(part):
            pairs[part] = pairs.get(part, []) + _complete(layout, part, dataset, values)
    if layout.val_fraction:
        chosen = held_out([image for image, _ in pairs['train']], layout.val_fraction, layout.val_seed)
        pairs['val'] = [pair for pair in pairs['train'] if pair[0] in chosen]
        pairs['train'] = [pair for pair in pairs['train'] if pair[0] not in chosen]
    maps = {part: _read(layout, part, pairs[part]) for part in ('train', 'val') if pairs.get(part)}
    names = _names(layout)
    too_large = [label for _, label in values.pairs if len(names) <= label != IGNORED] if names else []
    if too_large:
        raise RunError(f'label_map makes the label {max(too_large)}, but there are {len(names)} classes, from 0 on')
    classes = names or _counted(layout, maps['train'], values)
    for found in maps.values():
        _check_labels(found, maps['train'], classes, values)
    _check_learnable(layout, maps['train'], classes, values)
    return classes


class ValueMap:
    """Which label each value of a map becomes: by ``label_map``, by ``reduce_zero_label``, or itself."""

    def __init__(self, layout: Layout):
        self.pairs = _pairs_of(layout.options['label_map'])
        self.reduce_zero = _reduce_zero(layout)
        if self.pairs and self.reduce_zero:
            raise RunError(
                'label_map and reduce_zero_label exclude each other: map 0 with label_map, such as 0:255,1:0,2:1'
            )
        for node in layout.transforms('LoadAnnotations'):
            if 'reduce_zero_label' in node:
                node.reduce_zero_label = self.reduce_zero

    def __call__(self, value: int) -> int:
        if self.reduce_zero:
            return IGNORED if value in (0, IGNORED) else value - 1
        return dict(self.pairs).get(value, value)

    def labels(self, maps: Iterable[LabelMap]) -> Counter:
        """How many pixels have each label, the ignored one included."""
        counts: Counter = Counter()
        for one in maps:
            for value, count in one.pixels.items():
                counts[self(value)] += count
        return counts


def _pairs_of(option: Any) -> list[tuple[int, int]]:
    """``label_map`` as the command line (a list of ``value:label``) or a config (also a dict) gives it."""
    if not option:
        return []
    if isinstance(option, dict):
        items = list(option.items())
    else:
        texts = option.split(',') if isinstance(option, str) else option
        items = [text.split(':') if isinstance(text, str) else text for text in texts]
    try:
        pairs = [(int(value), int(label)) for value, label in items]
    except (TypeError, ValueError) as error:
        raise RunError(f'label_map must be pairs of value:label such as 0:0,255:1, got {option!r}') from error
    if not all(0 <= number <= 255 for pair in pairs for number in pair):
        raise RunError(f'values and labels of label_map must be numbers from 0 to 255, got {option!r}')
    if len(dict(pairs)) < len(set(pairs)):
        raise RunError(f'label_map must give each value one label, got {option!r}')
    return pairs


def _reduce_zero(layout: Layout) -> bool:
    """What the user wants: the option, or that of any dataset (the helper config has neither)."""
    own = [dataset.get('reduce_zero_label') for part in ('train', 'val', 'test') for dataset in layout.datasets(part)]
    return bool(layout.options['reduce_zero_label']) or any(own)


def _complete(layout: Layout, part: str, dataset: ConfigDict, values: ValueMap) -> Pairs:
    """Set up one dataset; returns its images and maps."""
    dataset.update(type='mmdat.LabelMapFolder', reduce_zero_label=values.reduce_zero)
    if values.pairs:
        dataset.label_map = values.pairs
    if part == 'val' and layout.val_fraction:
        source = layout.datasets('train')[0]
        dataset.update(
            data_prefix=dict(source.data_prefix),
            img_suffix=source.img_suffix,
            seg_map_suffix=source.seg_map_suffix,
            val_fraction=layout.val_fraction,
            val_seed=layout.val_seed,
            held_out=True,
        )
        return []
    if part == 'train' and layout.val_fraction:
        dataset.update(val_fraction=layout.val_fraction, val_seed=layout.val_seed, held_out=False)
    images, labels = layout.root / dataset.data_prefix.img_path, layout.root / dataset.data_prefix.seg_map_path
    if part == 'test' and not (holds_files(images) and holds_files(labels)):
        dataset.setdefault('img_suffix', layout.datasets('train')[0].img_suffix)
        return []  # a training does without
    if part == 'val' and not holds_files(images) and not holds_files(labels):
        layout.without_validation = True
        dataset.setdefault('img_suffix', layout.datasets('train')[0].img_suffix)
        return []
    require(images)
    require(labels)
    maps_suffix = dataset.seg_map_suffix
    if maps_suffix.lower().endswith(JPEG_SUFFIXES):
        raise RunError(f'{labels} has label maps in JPEG files, which change the values of pixels: save them as PNG')
    if not dataset.get('img_suffix'):
        dataset.img_suffix = _common_suffix(images, maps_suffix if images == labels else None)
    pairs = pair_files(images, labels, dataset.img_suffix, maps_suffix)
    if not pairs:
        raise RunError(f'{images} has no images NAME{dataset.img_suffix}: {LAYOUT_HELP}')
    alone = set(find_images(labels, (maps_suffix,))) - {label_map for _, label_map in pairs}
    if alone and images != labels:
        layout.notes.append(f'{len(alone)} label maps, such as {min(alone)}, have no image, and are not used.')
    missing = [label_map for _, label_map in pairs if not label_map.is_file()]
    if missing and part != 'test':
        raise RunError(
            f'{len(missing)} of {len(pairs)} images in {images} have no label map; the first that is missing is '
            f'{missing[0]}{_other_suffix(pairs, labels, dataset.img_suffix)}'
        )
    return pairs


def _common_suffix(images: Path, maps_suffix: Optional[str]) -> str:
    files = [path for path in find_images(images) if not (maps_suffix and path.name.endswith(maps_suffix))]
    suffixes = Counter(path.suffix for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    if not suffixes:
        raise RunError(f'{images} has no images ({", ".join(IMAGE_SUFFIXES)}): {LAYOUT_HELP}')
    if len(suffixes) > 1:
        found = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.items())
        raise RunError(f'the images in {images} must all have one suffix, such as .jpg; there are: {found}')
    return next(iter(suffixes))


def _other_suffix(pairs: Pairs, labels: Path, img_suffix: str) -> str:
    """A hint where all maps are named in another way."""
    names = [image.name[: -len(img_suffix)] for image, _ in pairs]
    files = [path.name for path in find_images(labels)]
    for file in files:
        suffix = next((file[len(name) :] for name in sorted(names, key=len)[::-1] if file.startswith(name)), '')
        if suffix and all(f'{name}{suffix}' in files for name in names[:50]):
            return (
                f', but there are NAME{suffix}: set train_dataloader.dataset.seg_map_suffix={suffix}, and that of '
                f'val_dataloader and test_dataloader'
            )
    return ''


def _read(layout: Layout, part: str, pairs: Pairs) -> dict[Path, LabelMap]:
    """All label maps, seen to have the size of their images."""
    maps = in_threads(read_label_map, [label_map for _, label_map in pairs])
    images = [image for image, _ in pairs]
    sizes = in_threads(image_size, images)
    layout.check_images(part, images, sizes)
    stored = []
    for (image, path), label_map, size in zip(pairs, maps, sizes):
        own = (label_map.height, label_map.width)
        if size is None or own == size.loaded(layout.ignore_orientation):
            continue
        if own == (size.height, size.width):
            stored.append(image)
            continue
        turned = ', which is turned' if own == (size.width, size.height) else ''
        height, width = size.loaded(layout.ignore_orientation)
        raise RunError(
            f'{path} has {own[0]}x{own[1]} pixels (height x width), but its image {image} has {height}x{width}{turned}:'
            f' each map must have the size of its image'
        )
    if stored:
        agree = [image for (image, _), size in zip(pairs, sizes) if size and size.turned and image not in stored]
        if agree:
            raise RunError(
                f'{stored[0]} and {agree[0]} both ask to be turned in their EXIF data, but only the map of the second '
                f'is turned: turn the maps, or store the images turned'
            )
        layout.load_unturned()
        layout.notes.append(
            f'{len(stored)} images, such as {stored[0]}, ask to be turned in their EXIF data, and their label maps are '
            f'not: images are loaded as they are stored.'
        )
    return {path: label_map for (_, path), label_map in zip(pairs, maps)}


def _names(layout: Layout) -> list[str]:
    """The classes that ``classes.txt`` names."""
    path = layout.root / 'classes.txt'
    if not path.is_file():
        return []
    names = class_names(path)
    name, count = Counter(names).most_common(1)[0] if names else ('', 0)
    if len(names) > IGNORED:
        raise RunError(f'{path} names {len(names)} classes, but maps of 8 bits tell {IGNORED} apart: join some')
    if count > 1:
        raise RunError(f'{path} has {count} classes named {name}: give each a name of its own')
    return names


def _counted(layout: Layout, maps: dict[Path, LabelMap], values: ValueMap) -> list[str]:
    present = sorted(label for label in values.labels(maps.values()) if label != IGNORED)
    if not present:
        raise _nothing(maps, values)
    count = present[-1] + 1
    if len(present) > 1 and 2 * len(present) < count:
        raise RunError(
            f'the label maps of {_folder(maps)} have only {len(present)} of the labels from 0 to {present[-1]} '
            f'({_some(present)}), as if they were gray values: number classes from 0 on, with --cfg-options '
            f'label_map={_in_order(present)}{_unless_ignored(maps, len(present))}, or name all {count} classes in '
            f'classes.txt'
        )
    if 0 not in present:
        layout.notes.append(
            f'No label map of {_folder(maps)} has the label 0, so "class 0" is never learnt: set --cfg-options '
            f'reduce_zero_label=True if your labels start at 1.'
        )
    return [f'class {label}' for label in range(count)]


def _check_labels(
    maps: dict[Path, LabelMap], trained: dict[Path, LabelMap], classes: list[str], values: ValueMap
) -> None:
    """Refuse labels that no class has; the training maps tell whether they are gray values."""
    count, strays, files, first = len(classes), set(), 0, None
    for path, label_map in maps.items():
        outside = {value for value in label_map.pixels if values(value) != IGNORED and values(value) >= count}
        if outside:
            first, files = first or (path, max(outside)), files + 1
            strays |= outside
    if not first:
        return
    all_values = {value for one in maps.values() for value in one.pixels} - {IGNORED}
    if all_values == set(range(1, count + 1)) or (not values.reduce_zero and max(all_values) == count):
        remedy = (
            'if labels start at 1 and 0 marks what belongs to no class, set --cfg-options reduce_zero_label=True; '
            'else add a name'
        )
    else:
        mapping = ','.join(f'{value}:{IGNORED}' for value in sorted(strays)[:12])
        remedy = (
            f'add names, mark what belongs to no class with {IGNORED}, or map values with --cfg-options '
            f'label_map={mapping}'
        )
    codes = sorted({value for one in trained.values() for value in one.pixels})
    codes = codes if len(codes) == count else [value for value in codes if value != IGNORED]
    if len(codes) == count and codes[-1] > count and not values.pairs and not values.reduce_zero:
        remedy = (
            f'if these are gray values of the classes, set --cfg-options label_map={_in_order(codes)}; else {remedy}'
        )
    raise RunError(
        f'{first[0]} has the label {first[1]}, as {files} of {len(maps)} maps there have labels outside of the list '
        f'({_some(sorted(strays))}), but there are names of only {count} classes, from label 0 on: {remedy}'
    )


def _check_learnable(layout: Layout, maps: dict[Path, LabelMap], classes: list[str], values: ValueMap) -> None:
    labels = values.labels(maps.values())
    present = [label for label in labels if label != IGNORED]
    if len(present) < 2:
        raise _nothing(maps, values)
    absent = [label for label in range(len(classes)) if not labels[label]]
    if absent and labels[IGNORED] and not (values.pairs or values.reduce_zero):
        layout.notes.append(
            f'{labels[IGNORED] / sum(labels.values()):.1%} of the pixels in {_folder(maps)} have the value {IGNORED}, '
            f'which marks what belongs to no class, and no pixel belongs to {classes[absent[0]]}: if {IGNORED} stands '
            f'for it, set --cfg-options label_map={IGNORED}:{absent[0]}.'
        )
    ignored = labels[IGNORED] / sum(labels.values())
    if ignored > 0.5:
        layout.notes.append(f'{ignored:.0%} of the pixels in {_folder(maps)} belong to no class (label {IGNORED}).')


def _in_order(values: list[int]) -> str:
    """The ``label_map`` that numbers values from 0 on."""
    return ','.join(f'{value}:{label}' for label, value in enumerate(values[:50]))


def _unless_ignored(maps: dict[Path, LabelMap], label: int) -> str:
    """What to add to a ``label_map`` if 255 is in the maps and stands for a class, too."""
    has = any(IGNORED in one.pixels for one in maps.values())
    return f' (and {IGNORED}:{label} if {IGNORED} is a class, too)' if has else ''


def _nothing(maps: dict[Path, LabelMap], values: ValueMap) -> RunError:
    """Why there is nothing to be told apart."""
    pixels: Counter = Counter()
    for one in maps.values():
        pixels.update(one.pixels)
    total = sum(pixels.values())
    found = ', '.join(f'{value} ({count / total:.1%} of the pixels)' for value, count in sorted(pixels.items()))
    remedy = 'each pixel needs the number of its class, from 0 on'
    if values.pairs:
        remedy = 'label_map must leave two labels or more'
    elif values.reduce_zero:
        remedy = 'leave reduce_zero_label out if labels start at 0'
    elif set(pixels) == {0, IGNORED}:
        remedy = 'set --cfg-options label_map=0:0,255:1 if 255 is a class'
    return RunError(
        f'the label maps of {_folder(maps)} have the values {found}, which are fewer than two classes, as {IGNORED} '
        f'marks what belongs to none, so nothing can be learnt: {remedy}'
    )


def _folder(maps: dict[Path, LabelMap]) -> Path:
    return next(iter(maps)).parent


def _some(values: list) -> str:
    return ', '.join(map(str, values[:12])) + (f' and {len(values) - 12} more' if len(values) > 12 else '')
