"""Images with label maps for segmentation, in folders of one's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from mmseg.datasets import BaseSegDataset

from mmdat.registry import DATASETS

from .files import held_out, pair_files


@DATASETS.register_module()
class LabelMapFolder(BaseSegDataset):
    """Images and label maps of the same names; hidden files are left out.

    Args:
        label_map: Pairs of a value of the maps and the label that takes its place.
        val_fraction: The part of the images that ``held_out`` chooses, or leaves.
        val_seed: Which images these are.
        held_out: Whether to be the validation part, where there is a ``val_fraction``.
        **kwargs: As for mmseg's BaseSegDataset.
    """

    def __init__(
        self,
        label_map: Sequence[tuple[int, int]] = (),
        val_fraction: Optional[float] = None,
        val_seed: int = 0,
        held_out: bool = False,
        lazy_init: bool = False,
        **kwargs,
    ):
        super().__init__(lazy_init=True, **kwargs)
        # mmseg's own label map goes by names of classes; its loader maps values by whatever it is.
        self.label_map = dict(label_map) or self.label_map
        self.val_fraction, self.val_seed, self.held_out = val_fraction, val_seed, held_out
        if not lazy_init:
            self.full_init()

    def load_data_list(self) -> list[dict]:
        if self.ann_file:
            return super().load_data_list()
        images, labels = Path(self.data_prefix['img_path']), Path(self.data_prefix['seg_map_path'])
        pairs = pair_files(images, labels, self.img_suffix, self.seg_map_suffix)
        if self.val_fraction:
            chosen = held_out([image for image, _ in pairs], self.val_fraction, self.val_seed)
            pairs = [pair for pair in pairs if (pair[0] in chosen) == self.held_out]
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [dict(img_path=str(image), seg_map_path=str(map), seg_fields=[], **common) for image, map in pairs]
