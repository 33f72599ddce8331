"""Images in a folder per class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mmpretrain.datasets import BaseDataset

from mmdat.registry import DATASETS

from .files import find_images, held_out


@DATASETS.register_module()
class ClassFolders(BaseDataset):
    """Images in a folder per class: hidden folders are no classes, and a folder may be missing or empty.

    Args:
        folders: The names of the folders, in the order of the labels.
        val_fraction: The part of each folder's images that ``held_out`` chooses, or leaves.
        val_seed: Which images these are.
        held_out: Whether to be the validation part, where there is a ``val_fraction``.
        **kwargs: As for mmpretrain's BaseDataset.
    """

    def __init__(
        self,
        folders: Sequence[str],
        val_fraction: Optional[float] = None,
        val_seed: int = 0,
        held_out: bool = False,
        lazy_init: bool = False,
        **kwargs,
    ):
        super().__init__(ann_file='', lazy_init=True, **kwargs)
        self.folders = list(folders)
        self.val_fraction, self.val_seed, self.held_out = val_fraction, val_seed, held_out
        if not lazy_init:
            self.full_init()

    def load_data_list(self) -> list[dict]:
        found = []
        for label, folder in enumerate(self.folders):
            images = find_images(Path(self.img_prefix) / folder)
            if self.val_fraction and len(images) > 1:
                chosen = held_out(images, self.val_fraction, self.val_seed)
                images = [image for image in images if (image in chosen) == self.held_out]
            elif self.val_fraction and self.held_out:
                images = []
            found += [dict(img_path=str(image), gt_label=label) for image in images]
        return found
