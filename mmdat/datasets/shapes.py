"""The demo data: images of coloured shapes that overlap, with labels for all three tasks.

One directory serves every toolbox::

    shapes/
      images/{training,validation}/*.jpg          the images of detection and segmentation
      annotations/instances_{train,val}.json      COCO format; masks are RLE of what is visible
      annotations/{training,validation}/*.png     ADE20K layout: 0 other, then SEMANTIC_CLASSES from 1
      classification/{train,val}/CLASS/*.png      ImageNet layout: one shape per image
      shapes.json                                 the arguments, and a digest of all files: is the data whole?

Everything follows from the arguments and the image's number, so equal arguments give equal bytes.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Union

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CLASSES = ('circle', 'square', 'triangle', 'star')
#: Labels 1 to 5 of the semantic maps; 0 is "other", which ADE20K's ``reduce_zero_label`` ignores.
SEMANTIC_CLASSES = ('background', *CLASSES)
#: Split, its folder in ADE20K's layout, and the seed of its images.
SPLITS = (('train', 'training', 0), ('val', 'validation', 1))
STAMP = 'shapes.json'

# A shape may hide an earlier one only so far that this part of it stays visible.
MIN_VISIBLE = 0.75
MIN_SHAPES, MAX_SHAPES = 2, 4


class Scene(NamedTuple):
    """One generated image.

    Attributes:
        image: BGR, ``(size, size, 3)`` uint8.
        labels: Index into :data:`CLASSES` of each shape, back to front.
        masks: What is visible of each shape, boolean ``(size, size)``.
        semantic: The semantic map, ``(size, size)`` uint8; 0 other, 1 background, 2 + label.
    """

    image: np.ndarray
    labels: list[int]
    masks: list[np.ndarray]
    semantic: np.ndarray


def make_shapes(out: Union[str, Path], num_train: int = 320, num_val: int = 64, size: int = 128) -> bool:
    """Make the demo data below ``out``, unless it is there already, whole and from the same arguments.

    Args:
        out: The directory. It must be new, empty, or made by this function.
        num_train: Training images; the classification data has as many, spread over the classes.
        num_val: Validation images, likewise.
        size: Side of the images in pixels.

    Returns:
        Whether data was made; False if it was there.

    Raises:
        ValueError: If a number is too small, or ``out`` holds files of another origin.
    """
    for name, value, least in (('num_train', num_train, 1), ('num_val', num_val, 1), ('size', size, 32)):
        if value < least:
            raise ValueError(f'{name} must be at least {least}, got {value}')
    out = Path(out)
    # Data of another version of this file counts as other data.
    generator = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    arguments = dict(num_train=num_train, num_val=num_val, size=size, generator=generator)
    stamp = out / STAMP
    if stamp.is_file():
        if _read_stamp(stamp) == dict(arguments, digest=_digest(out)):
            return False
        for name in ('images', 'annotations', 'classification'):
            shutil.rmtree(out / name, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} exists and was not made by this tool: choose another directory or remove it')
    out.mkdir(parents=True, exist_ok=True)
    # The digest comes last: without it the data counts as half-made.
    stamp.write_text(json.dumps(dict(arguments, digest=None)))
    for (split, folder, seed), count in zip(SPLITS, (num_train, num_val)):
        _write_scenes(out, split, folder, [_scene(np.random.default_rng([seed, i]), size) for i in range(count)])
        _write_classification(out / 'classification' / split, seed + len(SPLITS), count, size)
    stamp.write_text(json.dumps(dict(arguments, digest=_digest(out))))
    return True


def _read_stamp(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:  # cut off while it was written
        return None


def _digest(out: Path) -> str:
    """Hash of the names and bytes of all files but the stamp."""
    digest = hashlib.sha256()
    for path in sorted(path for path in out.rglob('*') if path.is_file() and path.name != STAMP):
        digest.update(path.relative_to(out).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- files -----------------------------------------------------------------------------------------


def _write_scenes(out: Path, split: str, folder: str, scenes: list[Scene]) -> None:
    images, maps = out / 'images' / folder, out / 'annotations' / folder
    images.mkdir(parents=True)
    maps.mkdir(parents=True)
    coco: dict[str, list[dict]] = dict(
        images=[], annotations=[], categories=[dict(id=i, name=name) for i, name in enumerate(CLASSES, 1)]
    )
    for number, scene in enumerate(scenes, 1):
        name = f'shapes_{split}_{number:05d}'
        _write_image(images / f'{name}.jpg', scene.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write_image(maps / f'{name}.png', scene.semantic)
        height, width = scene.semantic.shape
        coco['images'].append(dict(id=number, file_name=f'{name}.jpg', height=height, width=width))
        for label, mask in zip(scene.labels, scene.masks):
            coco['annotations'].append(_annotation(len(coco['annotations']) + 1, number, label, mask))
    (out / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco))


def _annotation(number: int, image: int, label: int, mask: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(
        id=number,
        image_id=image,
        category_id=label + 1,
        bbox=coco_mask.toBbox(rle).tolist(),
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
    )


def _write_classification(folder: Path, seed: int, count: int, size: int) -> None:
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        label = i % len(CLASSES)
        image = _background(rng, size)
        _paint(rng, image, _fill(_outline(rng, label, size, radius=(0.2, 0.35)), size), label)
        _write_image(folder / CLASSES[label] / f'{i:05d}.png', _finish(rng, image))


def _write_image(path: Path, image: np.ndarray, options: tuple[int, ...] = ()) -> None:
    if not cv2.imwrite(str(path), image, list(options)):
        raise OSError(f'cannot write the image {path}')


# --- pictures --------------------------------------------------------------------------------------


def _scene(rng: np.random.Generator, size: int) -> Scene:
    image = _background(rng, size)
    semantic = np.ones((size, size), np.uint8)
    _scribble(rng, image, semantic)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []
    wanted = rng.integers(MIN_SHAPES, MAX_SHAPES + 1)
    for _ in range(4 * MAX_SHAPES):
        if len(labels) == wanted:
            break
        label = int(rng.integers(len(CLASSES)))
        mask = _fill(_outline(rng, label, size, radius=(0.14, 0.26)), size)
        remaining = [other & ~mask for other in masks]
        if any(rest.sum() < MIN_VISIBLE * area for rest, area in zip(remaining, areas)):
            continue
        _paint(rng, image, mask, label)
        masks = [*remaining, mask]
        labels.append(label)
        areas.append(int(mask.sum()))
    for label, mask in zip(labels, masks):
        semantic[mask] = SEMANTIC_CLASSES.index(CLASSES[label]) + 1
    return Scene(_finish(rng, image), labels, masks, semantic)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A muted texture: soft clouds of colour under stripes; float32 ``(size, size, 3)``."""
    grid = int(rng.integers(3, 9))
    cells = rng.uniform(70, 180, (grid, grid, 1)) + rng.uniform(-35, 35, (grid, grid, 3))
    clouds = cv2.resize(cells.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.15) * size
    stripes = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
    return clouds + (rng.uniform(5, 25) * stripes[..., None]).astype(np.float32)


def _scribble(rng: np.random.Generator, image: np.ndarray, semantic: np.ndarray) -> None:
    """A few lines behind the shapes that belong to no class."""
    size = len(semantic)
    for _ in range(rng.integers(0, 4)):
        line = np.zeros((size, size), np.uint8)
        points = rng.integers(0, size, (3, 1, 2)).astype(np.int32)
        cv2.polylines(line, [points], False, 1, thickness=max(2, size // 50))
        image[line > 0] = rng.uniform(0, 255, 3)
        semantic[line > 0] = 0


def _outline(rng: np.random.Generator, label: int, size: int, radius: tuple[float, float]) -> np.ndarray:
    """Corners ``(N, 2)``, (x, y) in pixels, of a shape turned at random that lies inside the image."""
    corners, inner = {'circle': (48, 1.0), 'square': (4, 1.0), 'triangle': (3, 1.0), 'star': (10, 0.45)}[CLASSES[label]]
    radius = rng.uniform(*radius) * size
    # Equal circumscribed circles would make triangles and stars much smaller than circles.
    radius *= {'circle': 0.85, 'square': 1.0, 'triangle': 1.15, 'star': 1.2}[CLASSES[label]]
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    radii = np.where(np.arange(corners) % 2, inner, 1.0) * radius
    centre = rng.uniform(radius, size - radius, 2)
    return centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _fill(outline: np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
    return mask > 0


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, label: int) -> None:
    """Colour a shape with a vivid colour that fades across it; the hue hints at the class, but ranges overlap."""
    size = len(image)
    hue = (label / len(CLASSES) * 180 + rng.normal(0, 9)) % 180  # OpenCV's hues end at 180
    saturation, value = rng.uniform(150, 255), rng.uniform(110, 255)
    colour = cv2.cvtColor(np.uint8([[[hue, saturation, value]]]), cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    angle = rng.uniform(0, 2 * np.pi)
    fade = 1 + 0.4 * (x * np.cos(angle) + y * np.sin(angle))
    image[mask] = (fade[..., None] * colour)[mask]


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Soften the edges a little, add noise, and round to uint8."""
    image = cv2.GaussianBlur(image, (3, 3), 0.6) + rng.normal(0, 4, image.shape)
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
