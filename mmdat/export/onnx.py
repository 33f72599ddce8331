"""Writing ONNX files, and holding them to what PyTorch computes before they are kept."""

import importlib.util
import inspect
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
import torch.nn as nn
import torch.onnx
from torch import Tensor

from mmdat.errors import RunError
from mmdat.models.dat import MIN_SIZE

TOLERANCE = 1e-4  #: Largest difference of maps, logits and scores, relative to the largest value.
PIXELS = 0.1  #: Largest difference of boxes, in pixels.
MASKS = 0.02  #: Largest difference of the probabilities of masks.
# The first with GridSample; detectors are traced, as PyTorch's newer exporter keeps no lengths that depend on data.
OPSET = 17
Shape = tuple[int, int, int]  # batch, height, width


def require_packages() -> None:
    """Raises RunError if the packages or PyTorch's exporter are missing."""
    for name in ('onnx', 'onnxscript', 'onnxruntime'):
        if importlib.util.find_spec(name) is None:
            raise RunError(f'export needs the package {name}: pip install -r requirements/export.txt')
    if 'dynamo' not in inspect.signature(torch.onnx.export).parameters or not hasattr(torch.export.Dim, 'DYNAMIC'):
        raise RunError(f'export needs PyTorch 2.6 or newer, this is {torch.__version__}')


def export_checked(
    model: nn.Module,
    out: Union[str, Path],
    size: Sequence[int] = (224, 224),
    dynamic: bool = False,
    images: Optional[Sequence[tuple[Tensor, Sequence[int]]]] = None,
    about: Optional[dict[str, Any]] = None,
) -> list[float]:
    """Write an ONNX file, and keep it only if onnxruntime computes what PyTorch does.

    Args:
        model: What :func:`mmdat.export.models.load_model` returned.
        out: The file; an older one stays until the new one is good.
        size: Height and width of the input.
        dynamic: Leave batch, height and width open; else the batch is 1 and the size the given one.
        images: Preprocessed images ``(1, 3, h, w)`` to compare on, each with the (height, width) of what is no padding;
            by default random ones. Detectors need images with objects in them.
        about: What is written into the file's metadata, as JSON with the key ``mmdat``.

    Returns:
        The largest difference for each image, as a fraction of what is allowed.

    Raises:
        RunError: If the model cannot be exported, or the file computes something else.
    """
    require_packages()
    height, width = size
    if min(size) < MIN_SIZE:
        raise RunError(f'--size must be at least {MIN_SIZE} in both directions, got {height} {width}')
    detects = 'boxes' in model.outputs
    if dynamic and detects:
        raise RunError('a whole detector has a fixed size, as its anchors do: export it without --dynamic')
    if images:
        examples = [_fit(*image, size) for image in images]
    else:
        shapes: list[Shape] = [(1, height, width)] * 3
        if dynamic:
            shapes = [(2, height, width), (1, height + 37, width), (3, height, width + 70)]
        examples = [(torch.randn(batch, 3, *sides), sides) for batch, *sides in shapes]
    out = Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as directory:
        path = Path(directory, out.name)
        if detects:
            _trace(model, path, examples[0])
        else:
            _export(model, path, size, dynamic)
        if about:
            _write_metadata(path, dict(about, outputs=list(model.outputs), size=None if dynamic else list(size)))
        differences = compare(model, path, examples)
        if not max(differences) <= 1:
            raise RunError(
                f'the exported file differs from PyTorch by {max(differences):.1f} times what is allowed and was not '
                f'kept: {"export it for a fixed size" if dynamic else "please report the model"}'
            )
        path.replace(out)
    return differences


def _fit(image: Tensor, sides: Sequence[int], size: Sequence[int]) -> tuple[Tensor, list[int]]:
    """An image padded at the right and bottom to a size, and its own."""
    image = image[..., : sides[0], : sides[1]]
    if sides[0] > size[0] or sides[1] > size[1]:
        raise RunError(
            f'a preprocessed image is {sides[0]}x{sides[1]}, larger than --size {size[0]} {size[1]}: choose a size '
            f'that holds all images, whatever way they are turned'
        )
    return nn.functional.pad(image, (0, size[1] - sides[1], 0, size[0] - sides[0])), list(sides)


def _inputs(model: nn.Module, image: Tensor, sides: Sequence[int]) -> tuple[Tensor, ...]:
    return (image, torch.tensor(sides, dtype=torch.float32)) if 'boxes' in model.outputs else (image,)


def _export(model: nn.Module, path: Path, size: Sequence[int], dynamic: bool) -> None:
    dim = torch.export.Dim
    dims = {0: dim.DYNAMIC, 2: dim.DYNAMIC, 3: dim.DYNAMIC} if dynamic else None
    # An axis that has length 1 in the example stays fixed, also that of windows: at 256 pixels the last stage has two.
    image = torch.randn(2, 3, *[max(side, 256) for side in size]) if dynamic else torch.randn(1, 3, *size)
    try:
        # torch.onnx.export alone would quietly fix sizes that it cannot keep open.
        program = torch.export.export(model, (image,), dynamic_shapes=(dims,) if dynamic else None, strict=False)
        onnx_program = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=['input'], output_names=list(model.outputs)
        )
    except Exception as error:  # the exporter has many kinds, without a common base
        reason = str(error).strip().split('\n')[0]
        hint = ' with --dynamic: export it for a fixed size' if dynamic else f' at {size[0]}x{size[1]}'
        raise RunError(f'the exporter of PyTorch cannot export this model{hint} ({reason})') from error
    onnx_program.save(str(path))


def _trace(model: nn.Module, path: Path, example: tuple[Tensor, list[int]]) -> None:
    lengths = {name: {0: 'objects'} for name in model.outputs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of every size that a trace keeps, and of this exporter's age
            torch.onnx.export(
                model,
                _inputs(model, *example),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=['input', 'image_size'],
                output_names=list(model.outputs),
                dynamic_axes=lengths,
            )
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise RunError(f'the tracing exporter of PyTorch cannot export this detector ({reason})') from error


def _write_metadata(path: Path, about: dict[str, Any]) -> None:
    import onnx

    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(mmdat=json.dumps(about)))
    onnx.save(model, str(path))


def compare(model: nn.Module, path: Union[str, Path], examples: Sequence[tuple[Tensor, Sequence[int]]]) -> list[float]:
    """How far onnxruntime is from PyTorch on images, as a fraction of what is allowed.

    Allowed are :data:`TOLERANCE` of the largest value, for boxes :data:`PIXELS` and for masks :data:`MASKS`. The
    fraction is infinite if onnxruntime refuses the image, or finds other objects.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # it would hold the memory of an image twice
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    return [_difference(model, session, _inputs(model, *example)) for example in examples]


def _difference(model: nn.Module, session: Any, inputs: tuple[Tensor, ...]) -> float:
    with torch.no_grad():
        expected = model(*inputs)
    expected = [out.numpy() for out in ([expected] if isinstance(expected, Tensor) else expected)]
    names = [node.name for node in session.get_inputs()]
    try:
        found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})
    except Exception as error:  # onnxruntime's exceptions share no base
        warnings.warn(f'onnxruntime failed for an input of {tuple(inputs[0].shape)}: {error}', stacklevel=2)
        return float('inf')
    if [out.shape for out in found] != [out.shape for out in expected]:
        return float('inf')
    return max(_fraction(name, out, other) for name, out, other in zip(model.outputs, found, expected))


def _fraction(name: str, found: np.ndarray, expected: np.ndarray) -> float:
    if not expected.size:
        return 0.0
    if name == 'labels':
        return 0.0 if (found == expected).all() else float('inf')
    allowed = {'boxes': PIXELS, 'masks': MASKS}.get(name) or TOLERANCE * max(np.abs(expected).max(), 1e-12)
    return float(np.abs(found - expected).max() / allowed)
