"""Classification: a folder per class."""

from collections import Counter
from pathlib import Path

from mmengine.config import ConfigDict

from mmdat.datasets.files import IMAGE_SUFFIXES, find_images, hidden, image_size, in_threads
from mmdat.errors import RunError

from .layout import LAYOUT_HELP, Layout, holds_files, printable, require


def complete(layout: Layout) -> list[str]:
    """Set the datasets to the folders of the training images; returns the classes, the names of those."""
    (train,) = layout.datasets('train')
    path = layout.root / _place(train)
    folders = _folders(path)
    if len(folders) < 2:
        inside = [entry.name for entry in (path / folders[0]).iterdir() if entry.is_dir() and not hidden(entry, path)]
        remedy = f', or name the folder above {", ".join(sorted(inside)[:3])} in data_prefix' if inside else ''
        raise RunError(
            f'{path} has a folder of one class only, {folders[0]}, so nothing can be told apart: add a folder with '
            f'images of something else{remedy}'
        )
    if layout.val_fraction and not any(len(find_images(path / name)) > 1 for name in folders):
        raise RunError(f'no class in {path} has two images, so none can be held back')
    for part in ('train', 'val', 'test'):
        for dataset in layout.datasets(part):
            _complete(layout, part, dataset, folders)
    classes = [printable(folder) for folder in folders]
    if len(set(classes)) < len(classes):
        raise RunError(f'two folders have the same printable name in {", ".join(classes)}: rename one')
    return classes


def _place(dataset: ConfigDict) -> str:
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    return prefix.get('img_path', '') if isinstance(prefix, dict) else prefix


def _complete(layout: Layout, part: str, dataset: ConfigDict, folders: list[str]) -> None:
    place = _place(dataset)
    if part == 'val' and layout.val_fraction:
        place = _place(layout.datasets('train')[0])
        dataset.update(val_fraction=layout.val_fraction, val_seed=layout.val_seed, held_out=True)
    elif part == 'train' and layout.val_fraction:
        dataset.update(val_fraction=layout.val_fraction, val_seed=layout.val_seed, held_out=False)
    elif part == 'val' and not holds_files(layout.root / place):
        layout.without_validation = True
    elif part == 'val':
        _check_same(layout, layout.root / place, folders)
    dataset.update(type='mmdat.ClassFolders', data_prefix=place, folders=folders)
    for key in ('split', 'ann_file'):
        dataset.pop(key, None)
    if part == 'train' or (part == 'val' and not layout.without_validation and not layout.val_fraction):
        _check_images(layout, layout.root / place, folders, part)


def _folders(path: Path) -> list[str]:
    require(path)
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not hidden(entry, path))
    if not folders:
        raise RunError(f'{path} has no folders, one for each class: {LAYOUT_HELP}')
    return folders


def _check_same(layout: Layout, path: Path, folders: list[str]) -> None:
    own = _folders(path)
    unknown = [folder for folder in own if folder not in folders]
    if unknown:
        raise RunError(
            f'{path} has the folders {own}, but the training images have {folders}: no class can be learnt for '
            f'{", ".join(unknown)}; add training images, or remove it'
        )
    missing = [folder for folder in folders if not find_images(path / folder)]
    if missing:
        layout.notes.append(f'{path} has no images of {", ".join(missing)}: of these classes nothing is validated.')


def _check_images(layout: Layout, path: Path, folders: list[str], part: str) -> None:
    empty, unread, images = [], Counter(), []
    outside = [file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES]
    for folder in folders:
        place = path / folder
        found = find_images(place)
        images += found
        others = [other for other in place.rglob('*') if other.is_file() and not hidden(other, place)]
        unread.update(other.suffix.lower() for other in others if other.suffix.lower() not in IMAGE_SUFFIXES)
        if not found:
            empty.append(folder)
    beside = f'{len(outside)} images, such as {outside[0]}, lie in no folder of a class' if outside else ''
    listed = ', '.join(f'{count} {suffix or "without suffix"}' for suffix, count in unread.most_common(5))
    if (empty and part == 'train') or not images:
        holds = f'; files of other kinds are not read ({listed})' if listed else ''
        holds += f'; {beside}' if beside else ''
        raise RunError(
            f'{path} has no images of the class {", ".join(empty[:5])} ({", ".join(IMAGE_SUFFIXES)}){holds}: put some '
            f'there, or remove the folder'
        )
    named = [one for folder in folders for one in (path / folder).rglob('*') if one.suffix.lower() in IMAGE_SUFFIXES]
    lost = [one for one in named if not one.is_file() and not hidden(one, path)]
    if lost:
        layout.notes.append(
            f'{len(lost)} images, such as {lost[0]}, are links to nothing or no files, and are not used.'
        )
    if beside:
        layout.notes.append(f'{beside}, and are not used.')
    if listed:
        layout.notes.append(f'{sum(unread.values())} files in {path} are no images that are read: {listed}.')
    layout.check_images(part, images, in_threads(image_size, images))
