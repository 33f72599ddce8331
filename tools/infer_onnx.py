"""Predict with a whole model that tools/export_onnx.py wrote: NumPy, OpenCV, onnxruntime and no PyTorch.

    python infer_onnx.py maskrcnn.onnx images --out-dir results

Writes images.json and predictions.json, and PNG label maps of segmentors, as tools/infer.py does. The file stands
alone: copy it to wherever the model runs. Masks need pycocotools; resizing as Pillow does needs Pillow.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MODES = dict(bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC, nearest=cv2.INTER_NEAREST, area=cv2.INTER_AREA)


def resize(image: np.ndarray, height: int, width: int, step: dict) -> np.ndarray:
    """A BGR uint8 image in another size, by the library and interpolation that the model was tested with."""
    if step['backend'] == 'pillow':
        from PIL import Image

        mode = getattr(Image, step['interpolation'].upper())
        return np.asarray(Image.fromarray(image).resize((width, height), mode))
    return cv2.resize(image, (width, height), interpolation=MODES[step['interpolation']])


def prepare(image: np.ndarray, about: dict) -> np.ndarray:
    """A BGR uint8 ``(H, W, 3)`` picture to the input of the network, float32 ``(3, h, w)``, without padding."""
    for step in about['steps']:
        height, width = image.shape[:2]
        if step['do'] == 'resize':
            image = resize(image, *step['size'], step)
        elif step['do'] == 'scale':
            image = resize(image, int(height * step['factor'] + 0.5), int(width * step['factor'] + 0.5), step)
        elif step['do'] == 'fit':
            scale = min(step['long'] / max(height, width), step['short'] / min(height, width))
            image = resize(image, int(height * scale + 0.5), int(width * scale + 0.5), step)
        elif step['do'] == 'edge':
            short = (height < width) == (step['edge'] == 'short')
            if short:
                image = resize(image, step['size'], int(step['size'] * width / height), step)
            else:
                image = resize(image, int(step['size'] * height / width), step['size'], step)
        elif step['do'] == 'crop':
            rows, cols = step['size']
            top, left = [max(round((side - part) / 2), 0) for side, part in ((height, rows), (width, cols))]
            image = image[top : top + rows, left : left + cols]
    values = image[..., ::-1] if about['rgb'] else image
    values = (values.astype(np.float32) - np.float32(about['mean'])) / np.float32(about['std'])
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def pad(values: np.ndarray, about: dict) -> np.ndarray:
    """A batch of one, with zeros at the right and bottom up to the size of the file or the next multiple."""
    rows, cols = about['size'] or [-(-side // about['divisor']) * about['divisor'] for side in values.shape[1:]]
    if values.shape[1] > rows or values.shape[2] > cols:
        raise ValueError(
            f'it is {values.shape[1]}x{values.shape[2]} after preprocessing, and the model takes {rows}x{cols}: export '
            f'it with a larger --size, or a segmentor with --dynamic'
        )
    return np.pad(values, ((0, 0), (0, rows - values.shape[1]), (0, cols - values.shape[2])))[None]


def paste(probabilities: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask of the picture, bool ``(height, width)``, from probabilities ``(h, w)`` over the area of a box."""
    x1, y1, x2, y2 = box.tolist()
    left, top = max(int(np.floor(x1)) - 1, 0), max(int(np.floor(y1)) - 1, 0)
    right, bottom = min(int(np.ceil(x2)) + 1, width), min(int(np.ceil(y2)) + 1, height)
    mask = np.zeros((height, width), bool)
    if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
        return mask
    rows = _weights((np.arange(top, bottom) + 0.5 - y1) / (y2 - y1), probabilities.shape[0])
    cols = _weights((np.arange(left, right) + 0.5 - x1) / (x2 - x1), probabilities.shape[1])
    mask[top:bottom, left:right] = rows @ probabilities @ cols.T >= 0.5
    return mask


def _weights(places: np.ndarray, count: int) -> np.ndarray:
    """Of each of ``count`` values in the bilinear interpolation at places in [0, 1], ``(places, count)``."""
    return np.maximum(0, 1 - np.abs(places[:, None] * count - 0.5 - np.arange(count))).astype(np.float32)


def objects(found: dict, values: np.ndarray, picture: np.ndarray, score_thr: float) -> list:
    """Boxes, and masks where there are any, in COCO's result format, in pixels of the picture."""
    height, width = picture.shape[:2]
    scale = np.float32([values.shape[2] / width, values.shape[1] / height] * 2)
    results = []
    for i in np.flatnonzero(found['scores'] >= score_thr):
        box = found['boxes'][i] / scale
        x1, y1, x2, y2 = box.tolist()
        result = dict(
            category_id=int(found['labels'][i]) + 1, bbox=[x1, y1, x2 - x1, y2 - y1], score=float(found['scores'][i])
        )
        if 'masks' in found:
            from pycocotools import mask as coco

            code = coco.encode(np.asfortranarray(paste(found['masks'][i], box, height, width), np.uint8))
            result['segmentation'] = dict(size=code['size'], counts=code['counts'].decode())
        results.append(result)
    return results


def label_map(logits: np.ndarray, values: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The class of each pixel of the picture, from logits ``(classes, h, w)`` of the padded input."""
    logits = logits[:, : values.shape[1], : values.shape[2]]
    size = picture.shape[1], picture.shape[0]
    return np.stack([cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in logits]).argmax(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='the ONNX file')
    parser.add_argument('inputs', nargs='+', type=Path, metavar='INPUT', help='an image or a folder')
    parser.add_argument('--out-dir', type=Path, default=Path('results'), help='default: %(default)s')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out objects below (default: 0.3)')
    args = parser.parse_args()

    try:
        import onnxruntime
    except ModuleNotFoundError:
        sys.exit('infer_onnx.py: onnxruntime is not installed: run pip install onnxruntime')
    if args.out_dir.exists() and not args.out_dir.is_dir():
        sys.exit(f'infer_onnx.py: --out-dir must be a directory, but {args.out_dir} is a file')
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # it would hold the memory of a picture twice
    try:
        session = onnxruntime.InferenceSession(args.model, options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime's exceptions share no base
        sys.exit(f'infer_onnx.py: {args.model} cannot be loaded ({str(error).splitlines()[0]}): name an ONNX file')
    described = session.get_modelmeta().custom_metadata_map.get('mmdat')
    if not described:
        sys.exit(f'infer_onnx.py: {args.model} has no preprocessing in it: export it with --whole')
    about = json.loads(described)
    names = [node.name for node in session.get_inputs()]
    files = []
    for path in args.inputs:
        if not path.is_dir() and not path.is_file():
            sys.exit(f'infer_onnx.py: there is no input {path.absolute()}: name an image or a folder')
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        files += [file for file in found if file == path or (file.is_file() and file.suffix.lower() in SUFFIXES)]
    args.out_dir.mkdir(parents=True, exist_ok=True)
    categories = [dict(id=i, name=name) for i, name in enumerate(about['classes'], 1)]
    images, predictions, skipped = [], [], 0
    for file in files:
        picture = cv2.imdecode(np.fromfile(file, np.uint8), cv2.IMREAD_COLOR) if file.stat().st_size else None
        try:
            if picture is None:
                raise ValueError('it is no image that OpenCV knows')
            values = prepare(picture, about)
            inputs = [pad(values, about), np.float32(values.shape[1:])]
        except ValueError as error:
            print(f'skipped {file}: {error}', file=sys.stderr)
            skipped += 1
            continue
        found = dict(zip(about['outputs'], session.run(None, dict(zip(names, inputs)))))
        number = len(images) + 1
        images.append(dict(id=number, file_name=str(file), height=picture.shape[0], width=picture.shape[1]))
        if about['task'] == 'detection':
            predictions += [dict(image_id=number, **one) for one in objects(found, values, picture, args.score_thr)]
        elif about['task'] == 'segmentation':
            (args.out_dir / 'label_maps').mkdir(exist_ok=True)
            name = f'label_maps/{file.stem}.png'
            dtype = np.uint8 if len(categories) <= 256 else np.uint16
            cv2.imwrite(str(args.out_dir / name), label_map(found['logits'][0], values, picture).astype(dtype))
            predictions.append(dict(image_id=number, label_map=name))
        else:
            scores = found['scores'][0].tolist()
            best = int(np.argmax(scores))
            predictions.append(
                dict(
                    image_id=number,
                    category_id=best + 1,
                    category=about['classes'][best],
                    score=scores[best],
                    scores=scores,
                )
            )
    table = dict(images=images, annotations=[], categories=categories)
    (args.out_dir / 'images.json').write_text(json.dumps(table))
    (args.out_dir / 'predictions.json').write_text(json.dumps(predictions))
    print(f'{len(images)} images done, {skipped} skipped; predictions are in {args.out_dir}')
    return 1 if skipped or not images else 0


if __name__ == '__main__':
    sys.exit(main())
