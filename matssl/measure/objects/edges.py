"""What the edge of a field does to counts and sizes: half rule, Miles and Lantuéjoul."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.measure.objects.shapes import Floats, Shapes

# Places of a box that are tried, where pixels count nowhere, along each side of the field.
PLACES = 64


@dataclass(frozen=True)
class Edges:
    """How each of N objects lies to the edge of its field.

    Attributes:
        touches: whether it has a pixel at the edge of the field, or beside one that counts nowhere:
            a part of it may be missing.
        beside: whether it is such a pixel within the field that it touches.
        number: what it counts: 1 inside, 1/2 at an edge, 1/4 where it holds a corner of the field.
        weight: of its size, 0 at an edge.
    """

    touches: NDArray[np.bool_]
    beside: NDArray[np.bool_]
    number: Floats
    weight: Floats


def edges(
    labels: NDArray[np.int32], count: int, shapes: Shapes, unknown: NDArray[np.bool_]
) -> Edges:
    """Return how the objects 1 to ``count`` lie to the edge.

    Counts: an object across an edge is seen in two fields and counts half in each, one across a
    corner in four. Sizes: a large object lies rarely whole in a field; each that does stands for
    W H / ((W - 1 - w)(H - 1 - h)) of its size (Miles 1974; Lantuéjoul 1978), the share of all
    places in which it would not touch. Where pixels count nowhere, the places of its bounding box
    are counted.

    Args:
        labels: int32 (H, W), 0 for none.
        count: how many objects.
        shapes: of these.
        unknown: pixels that count nowhere (H, W).
    """
    top, bottom, left, right = window(unknown)
    at = touching(labels, count, unknown)
    gaps = unknown[top:bottom, left:right]
    if gaps.any():
        weight = _weights_by_places(shapes, gaps)
    else:
        size = (right - left, bottom - top)
        weight = miles_lantuejoul(shapes.width, shapes.height, *size)
    cut, corner, beside = at.cut[1:], at.corner[1:], at.beside[1:]
    number = np.where(corner, 0.25, np.where(cut, 0.5, 1.0))
    return Edges(cut, beside, number, np.where(cut, 0.0, weight))


class Touching(NamedTuple):
    """Which numbers touch what; bool (N + 1,), the first for 0, which is no object.

    Attributes:
        cut: an edge of the field, or a pixel that counts nowhere.
        corner: a corner of the field.
        beside: a pixel within the field that counts nowhere.
    """

    cut: NDArray[np.bool_]
    corner: NDArray[np.bool_]
    beside: NDArray[np.bool_]


def touching(labels: NDArray[np.int32], count: int, unknown: NDArray[np.bool_]) -> Touching:
    """Return which of the objects 1 to ``count`` touch an edge, a corner, a gap in the field."""
    top, bottom, left, right = window(unknown)
    inner, gaps = (array[top:bottom, left:right] for array in (labels, unknown))
    cut, corner, beside = (np.zeros(count + 1, bool) for _ in range(3))
    if inner.size:
        for side in (inner[0], inner[-1], inner[:, 0], inner[:, -1]):
            cut[side] = True
        for place in (inner[0, 0], inner[0, -1], inner[-1, 0], inner[-1, -1]):
            corner[place] = True
    if gaps.any():
        near = cv2.dilate(gaps.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        beside[inner[near]] = True
    return Touching(cut | beside, corner, beside)


def window(unknown: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return first and behind last row, first and behind last column of what counts.

    Rows of a bar that all count nowhere are beyond the field, as what was never imaged.
    """
    rows, columns = (np.flatnonzero(~unknown.all(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def miles_lantuejoul(w: Floats, h: Floats, width: int, height: int) -> Floats:
    """Return W H / ((W - 1 - w)(H - 1 - h)), the weight of an object that touches no edge.

    Of W + w - 1 places in which a box of w columns touches the field, W - 1 - w do not touch its
    border pixels; the formula with w and h of continuous figures has no 1.

    Args:
        w: columns of the bounding box.
        h: rows of it.
        width: of the field in pixels.
        height: of the field in pixels.
    """
    # Those that fill the field touch it and weigh nothing anyway.
    return width * height / (np.maximum(width - 1 - w, 1) * np.maximum(height - 1 - h, 1))


def _weights_by_places(shapes: Shapes, gaps: NDArray[np.bool_]) -> Floats:
    """Return counted pixels over the places of each box that hold and touch no gap.

    Places are tried on a grid, and once for each size of box.
    """
    height, width = gaps.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = gaps.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    counted = gaps.size - int(sums[-1, -1])
    sizes = np.stack([shapes.height, shapes.width], axis=1).astype(np.int64)
    kinds, own = np.unique(sizes, axis=0, return_inverse=True)
    found = np.ones(len(kinds))
    for place, (h, w) in enumerate(kinds.tolist()):
        # With a border of one pixel around, which must not be a gap either.
        rows, columns = height - h - 1, width - w - 1
        if rows < 1 or columns < 1:
            continue
        y, x = (np.unique(np.linspace(0, n - 1, PLACES).astype(int)) for n in (rows, columns))
        y, x = y[:, None], x[None]
        full = sums[y + h + 2, x + w + 2] - sums[y, x + w + 2] - sums[y + h + 2, x] + sums[y, x]
        share = max(float((full == 0).mean()), 1 / full.size)
        found[place] = share * rows * columns
    return np.asarray(counted / found)[own.ravel()]
