"""What tools/infer.py does: predict for images and videos, and write pictures and predictions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from rich.console import Console
from rich.progress import Progress

from mmdat.checkpoints.without_code import TRUSTED
from mmdat.errors import RunError
from mmdat.visualization import to_picture

from .pictures import Picture, Reader, batches, find_inputs
from .predictions import Writer
from .predictor import Predictor


def infer(
    cfg: Config,
    checkpoint: str,
    inputs: Sequence[str],
    out_dir: Union[str, Path],
    device: Optional[str] = None,
    score_thr: float = 0.3,
    batch_size: int = 1,
    trust_files: bool = False,
    pictures: bool = True,
    max_pixels: float = 1e8,
) -> dict[Path, str]:
    """Predict for images and videos, and write pictures and predictions below a directory; see :class:`Writer`.

    Files that cannot be read are named and left out; the others are finished.

    Args:
        cfg: The whole config.
        checkpoint: A local file.
        inputs: Images, folders, globs and videos.
        out_dir: Where the results go.
        device: Such as ``'cpu'`` or ``'cuda:0'``; by default a GPU if there is one.
        score_thr: Boxes and masks with a lower score are left out.
        batch_size: Images of equal size that follow each other and are predicted together.
        trust_files: Let the checkpoint run code.
        pictures: Whether to draw pictures.
        max_pixels: Images of more pixels are left out.

    Returns:
        The files that could not be read, and why.

    Raises:
        RunError: If something is missing, before the model is built.
    """
    if batch_size < 1:
        raise RunError(f'--batch-size must be at least 1, got {batch_size}')
    if not 0 <= score_thr <= 1:
        raise RunError(f'--score-thr must be from 0 to 1, got {score_thr:g}')
    if not max_pixels >= 1:
        raise RunError(f'--max-pixels must be at least 1, got {max_pixels:g}')
    paths, out_dir = find_inputs(inputs), Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise RunError(f'--out-dir must be a directory, but {out_dir} is a file')
    if trust_files:
        print(TRUSTED)
    predictor = Predictor(cfg, checkpoint, device or get_device(), trust_files)

    with Progress(console=Console(stderr=True)) as progress:

        def report(text: str) -> dict[Path, str]:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        reader = Reader(paths, predictor.load, report, max_pixels)
        task = progress.add_task('images', total=reader.count())
        with Writer(out_dir, predictor.classes, score_thr, report) as writer:
            for batch in batches(reader, batch_size):
                for picture, sample in _predicted(predictor, batch, reader):
                    drawn = predictor.draw(_bgr(picture), sample, score_thr) if pictures else None
                    writer.add(picture, sample, drawn)
                progress.advance(task, len(batch))
    return reader.faults


def _predicted(predictor: Predictor, batch: list[Picture], reader: Reader) -> Iterator[tuple[Picture, Any]]:
    """The pictures of a batch with their predictions; those that the model cannot take are left out."""
    try:
        samples = predictor.predict([picture.loaded for picture in batch])
    except RuntimeError as error:  # of shapes, and of memory
        if len(batch) == 1:
            reader.skip(batch[0].path, f'the model cannot take it ({str(error).splitlines()[0]})')
            return
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if len(batch) == 1:
            reader.skip(batch[0].path, f'it cannot be prepared as in testing ({str(error).splitlines()[0]})')
            return
    else:
        yield from zip(batch, samples)
        return
    for picture in batch:
        yield from _predicted(predictor, [picture], reader)


def _bgr(picture: Picture) -> np.ndarray:
    return np.ascontiguousarray(to_picture(picture.image)[..., ::-1])
