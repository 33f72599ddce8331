"""What tools/infer.py does: predict for images and videos, and write pictures and predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

from mmengine.config import Config
from mmengine.device import get_device
from rich.console import Console
from rich.progress import Progress

from mmdat.errors import RunError

from .pictures import Reader, batches, find_inputs
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

    Returns:
        The files that could not be read, and why.

    Raises:
        RunError: If something is missing, before the model is built.
    """
    if batch_size < 1:
        raise RunError(f'--batch-size must be at least 1, got {batch_size}')
    paths, out_dir = find_inputs(inputs), Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise RunError(f'--out-dir must be a directory, but {out_dir} is a file')
    predictor = Predictor(cfg, checkpoint, device or get_device(), trust_files)

    with Progress(console=Console(stderr=True)) as progress:

        def report(text: str) -> dict[Path, str]:
            progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

        reader = Reader(paths, report)
        task = progress.add_task('images', total=reader.count())
        with Writer(out_dir, predictor.classes, score_thr, report) as writer:
            for batch in batches(reader, batch_size):
                for picture, sample in zip(batch, predictor.predict([picture.image for picture in batch])):
                    writer.add(picture, sample, predictor.draw(picture.image, sample, score_thr))
                    progress.advance(task)
    return reader.faults
