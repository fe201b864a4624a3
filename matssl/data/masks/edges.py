"""What is drawn in a mask, and what lies between things that are: the pixels of soft edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

SQUARE = np.ones((3, 3), np.uint8)
# A neighbourhood of 3 x 3 pixels whose grey values differ by less lies within a region: noise of
# JPEG, and no edge.
FLAT = 16


def uniform(raw: Array) -> NDArray[np.bool_]:
    """Return bool (H, W): whether a pixel and its eight neighbours have one value.

    Args:
        raw: (H, W) or (H, W, 3).
    """
    low, high = _extremes(raw)
    return _all(low == high)


def flat(raw: Array) -> NDArray[np.bool_]:
    """Return bool (H, W): whether a pixel and its neighbours differ by noise at most.

    Args:
        raw: uint8 (H, W) or (H, W, 3).
    """
    low, high = _extremes(raw)
    return _all(high - low <= FLAT)


def between(raw: Array) -> NDArray[np.bool_]:
    """Return bool (H, W): whether a pixel has a lower and a higher neighbour.

    Args:
        raw: (H, W).
    """
    low, high = _extremes(raw)
    middle = np.asarray(raw)
    return np.asarray((middle > low) & (middle < high))


def sandwiched(classes: NDArray[np.uint8], num_classes: int, ordered: bool) -> NDArray[np.int64]:
    """Return int64 (C,): pixels of each class that look like the soft edge of two others.

    These are parts of a class thinner than three pixels that touch two other classes; of ordered
    grey values, a lower and a higher one. A soft edge from black to white passes through grey.

    Args:
        classes: (H, W), class indices.
        num_classes: C.
        ordered: whether classes follow each other on the grey scale.
    """
    found = np.zeros(num_classes, np.int64)
    near = [cv2.dilate((classes == c).astype(np.uint8), SQUARE) for c in range(num_classes)]
    for c in range(num_classes):
        own = (classes == c).astype(np.uint8)
        thin = own & ~cv2.morphologyEx(own, cv2.MORPH_OPEN, SQUARE)
        lower = sum((near[k] for k in range(c)), np.zeros_like(own))
        higher = sum((near[k] for k in range(c + 1, num_classes)), np.zeros_like(own))
        both = (lower > 0) & (higher > 0) if ordered else lower + higher >= 2
        found[c] = int(np.count_nonzero(both & (thin > 0)))
    return found


def _extremes(raw: Array) -> tuple[Array, Array]:
    values = np.ascontiguousarray(raw)
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    return cv2.erode(values, SQUARE), cv2.dilate(values, SQUARE)


def _all(fits: Array) -> NDArray[np.bool_]:
    return np.asarray(fits if fits.ndim == 2 else fits.all(axis=2))
