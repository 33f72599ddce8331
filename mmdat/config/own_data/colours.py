"""Colours of classes that are easy to tell from each other."""

import itertools

import numpy as np


def well_apart(count: int) -> list[tuple[int, int, int]]:
    """RGB colours, each as far as possible from those before it, and from black and white.

    Distances are those of the "redmean" approximation of how different colours look.
    """
    steps = np.linspace(0, 255, 12 if count <= 256 else 24).round()
    candidates = np.array(list(itertools.product(steps, repeat=3)))
    nearest = np.minimum(_distance(candidates, np.zeros(3)), _distance(candidates, np.full(3, 255.0)))
    chosen = []
    for _ in range(count):
        best = candidates[nearest.argmax()]
        chosen.append(tuple(int(value) for value in best))
        nearest = np.minimum(nearest, _distance(candidates, best))
    return chosen


def _distance(colours: np.ndarray, other: np.ndarray) -> np.ndarray:
    red = (colours[:, 0] + other[0]) / 2 / 256
    weights = np.stack([2 + red, np.full_like(red, 4), 3 - red], axis=1)
    return np.sqrt((weights * (colours - other) ** 2).sum(1))
