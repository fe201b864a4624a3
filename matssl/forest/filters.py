"""Filters of a picture at several scales: what each pixel and its surroundings look like.

The set of ilastik (Berg et al., "ilastik: interactive machine learning for (bio)image analysis",
Nature Methods 16, 2019) and of the Trainable Weka Segmentation (Arganda-Carreras et al.,
Bioinformatics 33, 2017): at every scale the Gaussian, the gradient's magnitude, the Laplacian of
Gaussian, the eigenvalues of the Hessian matrix and those of the structure tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
# Standard deviations of the Gaussians in pixels, ilastik's.
SIGMAS = (0.7, 1.0, 1.6, 3.5, 5.0, 10.0)
# Of the window of the structure tensor, as a multiple of the scale; ilastik's.
OUTER = 0.5
# A Gaussian is cut off at so many standard deviations.
REACH = 4.0
KINDS = (
    "Gaussian",
    "gradient",
    "Laplacian",
    "Hessian, larger eigenvalue",
    "Hessian, smaller eigenvalue",
    "structure tensor, larger eigenvalue",
    "structure tensor, smaller eigenvalue",
)
# Numbers of all filters that are held at once: about a quarter of a gigabyte.
NUMBERS = 1 << 26


def names(sigmas: Sequence[float], channels: int) -> tuple[str, ...]:
    """Return what each filter is, in the order of :func:`filtered`."""
    of = [f" of channel {c + 1}" if channels > 1 else "" for c in range(channels)]
    return tuple(
        text
        for channel in of
        for text in (
            f"picture{channel}",
            *(f"{kind}{channel}, {sigma:g} px" for sigma in sigmas for kind in KINDS),
        )
    )


def count(sigmas: Sequence[float], channels: int) -> int:
    """Return how many filters there are; none of no scale."""
    return channels * (1 + len(sigmas) * len(KINDS)) if sigmas else 0


def halo(sigmas: Sequence[float]) -> int:
    """Return the rows beside a strip that its filters reach."""
    widest = max(sigmas)
    return _radius(widest) + _radius(OUTER * widest) + 2


def strip(sigmas: Sequence[float], channels: int, width: int) -> int:
    """Return the rows whose filters are held at once."""
    each = width * channels * (1 + len(sigmas) * len(KINDS))
    return max(16, NUMBERS // max(1, each))


def filtered(image: Plane, rows: slice, sigmas: Sequence[float]) -> Plane:
    """Return every filter of some rows of a picture, float32 (F, rows, W).

    The same numbers whatever the strip: rows beside it take part. Borders are mirrored.

    Args:
        image: float32 (C, H, W).
        rows: start and stop, inside the picture.
        sigmas: scales in pixels.
    """
    edge = halo(sigmas)
    first, last = max(0, rows.start - edge), min(image.shape[1], rows.stop + edge)
    inside = slice(rows.start - first, rows.stop - first)
    count = 1 + len(sigmas) * len(KINDS)
    out = np.empty((len(image) * count, rows.stop - rows.start, image.shape[2]), np.float32)
    for channel, plane in enumerate(image):
        part = np.ascontiguousarray(plane[first:last])
        out[channel * count] = part[inside]
        for number, sigma in enumerate(sigmas):
            start = channel * count + 1 + number * len(KINDS)
            _one_scale(part, sigma, inside, out[start : start + len(KINDS)])
    return out


def _radius(sigma: float) -> int:
    return max(1, int(np.ceil(REACH * sigma)))


def _blurred(plane: Plane, sigma: float) -> Plane:
    side = 2 * _radius(sigma) + 1
    blurred: Plane = cv2.GaussianBlur(
        plane, (side, side), sigma, borderType=cv2.BORDER_REFLECT
    ).astype(np.float32, copy=False)
    return blurred


def _derived(plane: Plane, dx: int, dy: int) -> Plane:
    """Return central differences of the first or second order."""
    both = dx == dy
    scale = 0.25 if both else (0.5 if dx + dy == 1 else 1.0)
    derived: Plane = cv2.Sobel(
        plane,
        cv2.CV_32F,
        dx,
        dy,
        ksize=3 if both else 1,
        scale=scale,
        borderType=cv2.BORDER_REFLECT,
    ).astype(np.float32, copy=False)
    return derived


def _one_scale(plane: Plane, sigma: float, inside: slice, out: Plane) -> None:
    """Write the filters of one scale, in the order of KINDS."""
    smooth = _blurred(plane, sigma)
    x, y = _derived(smooth, 1, 0), _derived(smooth, 0, 1)
    out[0] = smooth[inside]
    _length(x[inside], y[inside], out[1])
    xx, yy, xy = (_derived(smooth, *order)[inside] for order in ((2, 0), (0, 2), (1, 1)))
    np.add(xx, yy, out=out[2])
    _eigenvalues(xx, xy, yy, out[3], out[4])
    outer = OUTER * sigma
    along, mixed, across = (_blurred(product, outer)[inside] for product in (x * x, x * y, y * y))
    _eigenvalues(along, mixed, across, out[5], out[6])


def _eigenvalues(xx: Plane, xy: Plane, yy: Plane, larger: Plane, smaller: Plane) -> None:
    """Write the eigenvalues of symmetric 2 x 2 matrices."""
    half = (xx + yy) * np.float32(0.5)
    spread = _length((xx - yy) * np.float32(0.5), xy, np.empty_like(half))
    np.add(half, spread, out=larger)
    np.subtract(half, spread, out=smaller)


def _length(x: Plane, y: Plane, out: Plane) -> Plane:
    """Write the length of vectors; numpy rounds a number alike wherever it stands in an array."""
    np.multiply(x, x, out=out)
    out += y * y
    return np.sqrt(out, out=out)
