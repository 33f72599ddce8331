"""Copies of images for drawing."""

import numpy as np


def to_picture(image: np.ndarray) -> np.ndarray:
    """An 8-bit RGB copy of an image as a pipeline loads it, for drawing only.

    Images of other types than 8 bits are spread from their least to their greatest value, unless they are floats from 0
    to 255. One channel is gray; of more than three, the first three are taken.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``; the first three channels are BGR, as OpenCV loads them.

    Returns:
        ``(H, W, 3)``, uint8.
    """
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., [0, 0, 0]]
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
        low, high = float(image.min()), float(image.max())
        if low < 0 or high > 255 or high <= 1 or not (image == image.round()).all():
            image = (image - low) * (255 / (high - low) if high > low else 0)
        image = image.round().astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])
