"""The table of published weights (table.json), and finding one by its name."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Optional

from mmdat.errors import CheckpointError

#: What stands before a name where MMEngine takes the path or address of a checkpoint.
SCHEME = 'mmdat://'


@dataclass(frozen=True)
class Weights:
    """A file that the authors of DAT published.

    Attributes:
        name: The name in ``mmdat://NAME``. Classifiers are named like their configs without the number of epochs,
            detectors and segmentors like their configs.
        config: The config of the whole model, ``configs/CONFIG.py``.
        arch: The architecture, as ``DAT(arch=...)`` takes it.
        img_size: The image size that the position-bias tables are made for.
        window_size: The window size.
        test_resize: The side of the square that the authors resize an image to for testing; None for detectors and
            segmentors.
        test_crop: The side of the centre crop that they take from it; None likewise.
        file: The file's name in the cache, in a directory of yours and on a mirror.
        page: The web page to download the file from.
        other_page: Another one.
        published_in: Where the authors give these addresses.
    """

    name: str
    config: str
    arch: str
    img_size: int
    window_size: int
    test_resize: Optional[int]
    test_crop: Optional[int]
    file: str
    page: str
    other_page: str
    published_in: str

    @property
    def url(self) -> str:
        """The address of the file itself."""
        return f'{self.page}?dl=1'

    @property
    def is_classifier(self) -> bool:
        """Whether the file holds an ImageNet classifier, and not a detector or segmentor."""
        return self.test_crop is not None


@lru_cache(maxsize=64)
def _table() -> dict[str, Weights]:
    rows = json.loads(Path(__file__).with_name('table.json').read_text())
    return {row['name']: Weights(**row) for row in rows}


def list_weights() -> list[str]:
    """The names of all published weights, as ``DAT.from_pretrained`` and, behind ``mmdat://``, MMEngine take them."""
    return list(_table())


def find_weights(name: str) -> Weights:
    """The weights of a name.

    Args:
        name: One of :func:`list_weights`, also behind ``mmdat://``; or the name of a published architecture, such as
            ``'tiny'`` or ``'base++'``, for its ImageNet classifier at 224x224.

    Raises:
        CheckpointError: If there are no such weights; names those that there are.
    """
    table = _table()
    name = name[len(SCHEME) :] if name.startswith(SCHEME) else name
    if name in table:
        return table[name]
    for weights in table.values():  # classifiers at 224x224 come first
        if weights.arch == name:
            return weights
    raise CheckpointError(f'there are no weights named {name!r}: choose one of {", ".join(table)}')
