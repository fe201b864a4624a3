"""Pictures for the eye: 8 bit at native size, in windows; whatever their file holds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, percentiles, roomy, strips
from matssl.data import readers
from matssl.data.levels import shrunk

# Bytes of pictures that are kept for the next window.
KEPT = 384 << 20
# Sides of a window, and of pictures of whole pictures.
LARGEST_WINDOW, LARGEST_WHOLE, THUMBNAIL = 4096, 2048, 360
# Levels that become black and white, in per cent.
LEVELS = (0.5, 99.5)


class Views:
    """Pictures in 8 bit; the last ones are kept, up to a bound of memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        # Large pictures are decoded one after the other.
        self._decoding = threading.Lock()

    def whole(self, path: Path, bar: int) -> NDArray[np.uint8]:
        """Return a picture at native size, uint8 (H, W) or (H, W, 3).

        Args:
            path: of the file.
            bar: rows at the bottom that do not count for the grey levels.

        Raises:
            UserError: it cannot be read.
        """
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size, bar)
        found = self._get(key)
        if found is not None:
            return found
        with self._decoding:
            found = self._get(key)
            if found is None:
                pixels = readers.read(path, color="rgb").pixels
                found = stretched(pixels, max(1, len(pixels) - bar))
                self._keep(key, found)
        return found

    def _get(self, key: tuple[str, int, int, int]) -> NDArray[np.uint8] | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _keep(self, key: tuple[str, int, int, int], plane: NDArray[np.uint8]) -> None:
        with self._lock:
            self._kept[key] = plane
            while len(self._kept) > 1 and sum(p.nbytes for p in self._kept.values()) > KEPT:
                self._kept.popitem(last=False)


def stretched(pixels: Array, kept: int) -> NDArray[np.uint8]:
    """Return grey levels stretched between their 0.5 and 99.5 % to 8 bit.

    Args:
        pixels: (H, W) or (H, W, 3), any type.
        kept: rows whose levels count.
    """
    low, high = percentiles(pixels[:kept], LEVELS)
    scale = 255 / max(float(high) - float(low), 1e-9)
    result = roomy(pixels.shape, np.uint8)
    for rows in strips(len(pixels)):
        part = (pixels[rows].astype(np.float32) - np.float32(low)) * np.float32(scale)
        result[rows] = np.rint(np.clip(np.nan_to_num(part), 0, 255)).astype(np.uint8)
    return result


def png(plane: NDArray[np.uint8]) -> bytes:
    """Return a picture as PNG."""
    drawn = plane if plane.ndim == 2 else np.ascontiguousarray(plane[..., ::-1])
    return bytes(cv2.imencode(".png", drawn, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1].tobytes())


def small(plane: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """Return a picture of at most so many pixels a side."""
    if max(plane.shape[:2]) <= longest:
        return plane
    first = shrunk(plane, longest * 2)
    scale = longest / max(first.shape[:2])
    size = (max(1, round(first.shape[1] * scale)), max(1, round(first.shape[0] * scale)))
    done = cv2.resize(np.asarray(first, np.float32), size, interpolation=cv2.INTER_AREA)
    return np.rint(done).astype(np.uint8)


def window(shape: tuple[int, int], left: int, top: int, width: int, height: int) -> tuple[int, ...]:
    """Return a window cut to a picture: left, top, width, height.

    Raises:
        ValueError: nothing of it lies in the picture, or it is too large.
    """
    right, bottom = min(shape[1], left + width), min(shape[0], top + height)
    left, top = max(0, left), max(0, top)
    if right <= left or bottom <= top:
        raise ValueError("the window lies outside the picture")
    if max(right - left, bottom - top) > LARGEST_WINDOW:
        raise ValueError(f"a window has at most {LARGEST_WINDOW} pixels a side")
    return left, top, right - left, bottom - top
