"""Arithmetic on the grey levels of whole pictures, in strips so that no copy of them is needed."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import BLOCK, STRIP, Array, pairwise, roomy, strips

# OpenCV averages and resizes no more at once.
MOST_CHANNELS = 4


def summed(values: Array, power: int) -> NDArray[np.float64]:
    """Return the sum of the powers of a plane's levels, 0 to 1, of each channel; float64 (C,)."""

    def levels(part: Array) -> NDArray[np.float64]:
        wide = part.astype(np.float64)
        wide = wide / 255 if values.dtype == np.uint8 else wide
        return wide if power == 1 else wide**power

    if values.shape[1] == 1:
        return np.array([pairwise(values.reshape(-1), levels)])
    total: NDArray[np.float64] = np.zeros(values.shape[1])
    for rows in strips(len(values), BLOCK):
        # Row upon row, as one sum over all of them goes.
        total = np.concatenate([total[None], levels(values[rows])]).sum(0)
    return total


def windowed(pixels: Array, window: tuple[float, float]) -> Array:
    """Return grey levels as float32, 0 and 1 at the window's ends, up to half its width beyond."""
    low, high = window
    plane = (pixels.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(plane, -0.5, 1.5)


def rescaled(plane: Array, shape: tuple[int, int]) -> Array:
    """Return a plane at another size, (H, W)."""
    if plane.shape[:2] == shape:
        return plane
    shrinks = shape[0] < plane.shape[0] or shape[1] < plane.shape[1]
    # Area averaging when shrinking (no aliasing), linear when enlarging.
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    result = roomy((*shape, *plane.shape[2:]), plane.dtype)
    return cv2.resize(plane, shape[::-1], dst=result, interpolation=kind)


def shrunk(plane: Array, longest: int) -> Array:
    """Return a picture of at most ``longest`` pixels a side, float32, for what only looks at it.

    Smaller ones come back as they are. Larger ones are averaged, strip by strip, over squares of
    whole pixels; rows and columns beyond the last whole square are left out.
    """
    factor = -(-max(plane.shape[:2]) // longest)
    if factor == 1 or min(plane.shape[:2]) < factor:
        return plane
    height, width = (side // factor for side in plane.shape[:2])
    result = np.empty((height, width, *plane.shape[2:]), np.float32)
    for rows in strips(height, max(1, STRIP // factor)):
        part = plane[rows.start * factor : rows.stop * factor, : width * factor]
        size = (width, rows.stop - rows.start)
        result[rows] = cv2.resize(part.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return result


def resized(plane: Array, side: int, interpolation: int) -> Array:
    """Return a plane of any number of channels at side x side pixels."""
    if plane.ndim == 2 or plane.shape[2] <= MOST_CHANNELS:
        return cv2.resize(plane, (side, side), interpolation=interpolation)
    return np.stack(
        [resized(plane[..., i], side, interpolation) for i in range(plane.shape[2])], axis=2
    )
