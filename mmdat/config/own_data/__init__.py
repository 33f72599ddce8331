"""Data of one's own: what a config asks for with ``classes_from`` (see configs/own_data and docs/custom_data.md)."""

import copy
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmdat.errors import RunError

from ..walk import innermost_datasets
from . import class_folders, coco, converted, label_maps
from .colours import well_apart
from .layout import LAYOUT_HELP, Layout

_LAYOUTS = dict(
    coco=coco.complete,
    label_maps=label_maps.complete,
    class_folders=class_folders.complete,
    voc=converted.complete_voc,
    yolo=converted.complete_yolo,
)
_TOOLBOXES = dict(coco='mmdet', voc='mmdet', yolo='mmdet', label_maps='mmseg', class_folders='mmpretrain')
_OF_DATASETS = ('ann_file', 'data_prefix', 'split', 'img_suffix', 'seg_map_suffix', 'reduce_zero_label')
_OPTIONS = ('classes_from', 'val_fraction', 'val_seed', 'reduce_zero_label', 'label_map')


def complete_config(cfg: Config, work_dir: str) -> list[str]:
    """Put a config's datasets below its ``data_root``, with the classes that ``classes_from`` says, in place.

    Taken out of the config are ``classes_from`` and the options that go with it: ``val_fraction``, ``val_seed``, and
    for label maps ``reduce_zero_label`` and ``label_map``. ``classes_from`` is one of:

    - ``'coco'``: the categories of ``ann_file``; ``ann_file`` of COCO's metrics follows, too. Fields that are missing
      are completed in a copy below the work directory.
    - ``'label_maps'``: ``classes.txt`` in the data root or else the labels of the training maps.
    - ``'class_folders'``: the names of the folders of the training images.
    - ``'voc'``, ``'yolo'``: the names in the annotations, which are converted to COCO format.

    Where there is no validation data, the config is left without validation. Faults of test data that are not the
    validation data are no faults of a training, and only named. What the user should know of the data is put into the
    config's ``DataCheckHook``, which says it in the log of the training.

    Returns:
        The names of the classes.

    Raises:
        RunError: If files are missing or hold what cannot be learnt from; says which and why.
    """
    options = {key: cfg.pop(key, None) for key in _OPTIONS}
    kind = options['classes_from']
    if kind not in _LAYOUTS:
        raise RunError(f'classes_from must be one of {", ".join(_LAYOUTS)}, got {kind!r}')
    scope = cfg.get('default_scope')
    if scope != _TOOLBOXES[kind] and scope in _TOOLBOXES.values():
        raise RunError(
            f'classes_from={kind!r} describes data of {_TOOLBOXES[kind]}, but the config is for {scope}: choose the '
            f'--override of the same task'
        )
    root = Path(os.path.expanduser(cfg.data_root))
    if not root.is_dir():
        raise RunError(
            f'there is no directory {root.absolute()} with your data: name yours with --data DIRECTORY; {LAYOUT_HELP}'
        )
    _check_fraction(options['val_fraction'])
    options['val_seed'] = _checked_seed(options['val_seed'])
    for part in ('train', 'val', 'test'):
        _push_down(cfg[f'{part}_dataloader'].dataset)
    test_is_val = cfg.get('test_dataloader') == cfg.get('val_dataloader')
    layout = Layout(cfg, root, Path(work_dir), options, test_is_val)
    classes = _LAYOUTS[kind](layout)
    if layout.without_validation:
        cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
        layout.notes.append(
            f'{root.absolute()} has no validation data, so nothing is validated: --val-fraction 0.1 keeps a tenth of '
            f'the training data for it.'
        )
    elif test_is_val:
        cfg.test_dataloader, cfg.test_evaluator = copy.deepcopy(cfg.val_dataloader), copy.deepcopy(cfg.val_evaluator)
    for dataset in _datasets(cfg):
        dataset.data_root = str(root)
        dataset.metainfo = _metainfo(layout, dataset, classes)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks['data_check'] = ConfigDict(type='mmdat.DataCheckHook', notes=list(dict.fromkeys(layout.notes)))
    return classes


def _push_down(dataset: ConfigDict) -> None:
    """Move what the helper config says of a dataset from a wrapper, such as RepeatDataset, to what it wraps."""
    inner = [*_listed(dataset.get('dataset')), *_listed(dataset.get('datasets'))]
    if not inner:
        return
    given = {key: dataset.pop(key) for key in _OF_DATASETS if key in dataset}
    for one in inner:
        # Several have places of their own.
        one.update({key: value for key, value in given.items() if len(inner) == 1 or key not in one})
        _push_down(one)


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _datasets(cfg: Config) -> list[ConfigDict]:
    loaders = [cfg.get(f'{part}_dataloader') for part in ('train', 'val', 'test')]
    return [dataset for loader in loaders if loader for dataset in innermost_datasets(loader['dataset'])]


def _metainfo(layout: Layout, dataset: ConfigDict, classes: list[str]) -> dict[str, Any]:
    """Names and colours of the classes; colours of the config are kept if there is one for each class."""
    own = dataset.get('metainfo') or {}
    palette = own.get('palette')
    if palette is not None and not _is_palette(palette, len(classes)):
        if not _is_palette(palette, len(own.get('classes') or [])):  # it is of the config's own classes otherwise
            layout.notes.append(
                f'metainfo.palette is not used, as it is no list of {len(classes)} colours, each of three numbers from '
                f'0 to 255: colours are made.'
            )
        palette = None
    palette = palette or well_apart(len(classes))
    # mmdet's visualizer takes a list for several colours.
    return dict(classes=tuple(classes), palette=[tuple(colour) for colour in palette])


def _is_palette(palette: Any, count: int) -> bool:
    if not isinstance(palette, (list, tuple)) or len(palette) != count:
        return False
    channels = [list(colour) if isinstance(colour, (list, tuple)) else [] for colour in palette]
    return all(len(one) == 3 and all(isinstance(n, int) and 0 <= n <= 255 for n in one) for one in channels)


def _check_fraction(fraction: Any) -> None:
    good = isinstance(fraction, (int, float)) and not isinstance(fraction, bool) and 0 < fraction < 1
    if fraction is not None and not good:
        raise RunError(f'val_fraction must be a number between 0 and 1, such as 0.1, got {fraction!r}')


def _checked_seed(seed: Any) -> int:
    if seed is None:
        return 0
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RunError(f'val_seed must be a whole number, got {seed!r}')
    return seed
