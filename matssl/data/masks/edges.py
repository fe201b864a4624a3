"""What is drawn in a mask, and what lies between things that are: the pixels of soft edges."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

SQUARE = np.ones((3, 3), np.uint8)
# How far a wide soft edge reaches, and how near to what is firm a pixel is no edge.
WIDE = np.ones((7, 7), np.uint8)
FIRM = np.ones((5, 5), np.uint8)
# A neighbourhood of 3 x 3 pixels whose grey values differ by less lies within a region: noise of
# JPEG, and no edge.
FLAT = 16


def drawn_as(raw: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return three of bool (H, W), of each pixel and its eight neighbours.

    Whether they have one value; whether they differ by noise at most, on a scale of 8 bits; whether
    a neighbour is lower and another higher (never of colours).

    Args:
        raw: (H, W) or (H, W, 3).
    """
    low, high = _extremes(raw)
    same = _all(low == high)
    noise = FLAT << 8 if raw.dtype == np.uint16 and int(raw.max()) > 255 else FLAT
    near = _all(high - low <= noise)
    if raw.ndim == 3:
        return same, near, np.zeros_like(same)
    return same, near, np.asarray((raw > low) & (raw < high))


def sandwiched(
    classes: NDArray[np.uint8], firm: NDArray[np.bool_], num_classes: int, ordered: bool
) -> NDArray[np.int64]:
    """Return int64 (C,): pixels of each class that look like the soft edge of two others.

    These are parts of a class that touch two other classes (of ordered grey values, a lower and a
    higher one) and are thinner than three pixels, or wider and nowhere firm. A soft edge from black
    to white passes through grey.

    Args:
        classes: (H, W), class indices.
        firm: (H, W), what lies within a region by its values.
        num_classes: C.
        ordered: whether classes follow each other on the grey scale.
    """
    own = [(classes == c).astype(np.uint8) for c in range(num_classes)]
    touched = _touches_two([cv2.dilate(one, SQUARE) for one in own], ordered)
    near = _touches_two([cv2.dilate(one, WIDE) for one in own], ordered)
    found = np.zeros(num_classes, np.int64)
    for c, one in enumerate(own):
        thin = (one > 0) & (cv2.morphologyEx(one, cv2.MORPH_OPEN, SQUARE) == 0)
        loose = (one > 0) & (cv2.dilate(one & firm.astype(np.uint8), FIRM) == 0)
        found[c] = int(np.count_nonzero((thin & touched[c]) | (loose & near[c])))
    return found


def _touches_two(near: list[Array], ordered: bool) -> list[NDArray[np.bool_]]:
    """Return for each class where two others are near, bool (H, W)."""
    result = []
    for c in range(len(near)):
        lower = sum((one for one in near[:c]), np.zeros_like(near[c]))
        higher = sum((one for one in near[c + 1 :]), np.zeros_like(near[c]))
        both = (lower > 0) & (higher > 0) if ordered else lower + higher >= 2
        result.append(np.asarray(both))
    return result


def _extremes(raw: Array) -> tuple[Array, Array]:
    values = np.ascontiguousarray(raw)
    if values.dtype not in (np.uint8, np.uint16):
        values = values.astype(np.float32)
    return cv2.erode(values, SQUARE), cv2.dilate(values, SQUARE)


def _all(fits: Array) -> NDArray[np.bool_]:
    return np.asarray(fits if fits.ndim == 2 else fits.all(axis=2))
