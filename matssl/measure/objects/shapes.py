"""Size and shape of numbered objects, all of them at once from the runs of their rows.

What ``skimage.measure.regionprops`` computes one object after the other is summed here over all
objects together; the tests hold both against each other. All lengths are in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Below this diameter of the equal circle, in pixels, an outline of pixels has no shape.
LEAST_SHAPE = 10.0


@dataclass(frozen=True)
class Shapes:
    """Size and shape of N objects; every array is float64 (N,), lengths in pixels.

    Attributes:
        x: centre of mass from the left edge of the field.
        y: centre of mass from the upper edge of the field.
        area: number of pixels.
        left: of the bounding box, first column.
        top: of the bounding box, first row.
        width: of the bounding box, columns.
        height: of the bounding box, rows.
        outer: length of the outer outline (Crofton, four directions).
        total: length of the outline with those of holes.
        feret_max: largest distance of two parallel tangents, on the corners of pixels.
        feret_min: smallest distance of two parallel tangents.
        feret_angle: of the largest one, degrees counter-clockwise from x with y up, 0 to 180.
        hull: area of the convex hull of the pixels' corners.
        aspect: long over short axis of the ellipse with the same second moments.
        orientation: of its long axis, degrees counter-clockwise from x with y up, 0 to 180; NaN
            where both axes are equal.
        holes: how many holes.
    """

    x: Floats
    y: Floats
    area: Floats
    left: Floats
    top: Floats
    width: Floats
    height: Floats
    outer: Floats
    total: Floats
    feret_max: Floats
    feret_min: Floats
    feret_angle: Floats
    hull: Floats
    aspect: Floats
    orientation: Floats
    holes: Floats

    @property
    def diameter(self) -> Floats:
        """Diameter of the circle of equal area, 2 sqrt(A / pi)."""
        return 2 * np.sqrt(self.area / math.pi)

    @property
    def circularity(self) -> Floats:
        """4 pi A / P^2 of the outer outline; pixels may bring it above 1: it is not cut."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(4 * math.pi * self.area / self.outer**2)

    @property
    def solidity(self) -> Floats:
        """Area over that of the convex hull."""
        return self.area / self.hull

    @property
    def shaped(self) -> NDArray[np.bool_]:
        """Which objects are large enough to have a shape (LEAST_SHAPE), bool (N,)."""
        return self.diameter >= LEAST_SHAPE


@dataclass(frozen=True)
class Runs:
    """The objects as runs of pixels along rows, sorted by object; every array is int64 (R,)."""

    label: NDArray[np.int64]
    row: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def measured(
    labels: NDArray[np.int32],
    count: int,
    step: tuple[float, float] = (1.0, 1.0),
    connected: bool = True,
) -> Shapes:
    """Return size and shape of the objects 1 to ``count``.

    Args:
        labels: int32 (H, W), 0 for none.
        count: how many objects; each has a pixel.
        step: height and width of a pixel, in the unit of the result.
        connected: whether each object is one part; where not, holes are looked for in each.
    """
    high, wide = step
    runs = runs_of(labels)
    area, x, y = _centres(runs, count)
    long, short, orientation = _axes(runs, count, area, x, y, step)
    top, bottom, left, right = _boxes(runs, count)
    crossings = _crossings(labels, count)
    holes = 1 - _euler(labels, count)
    total = crofton(crossings, step)
    outer = total.copy()
    for place in np.flatnonzero(holes > 0) if connected else range(count):
        part = labels[top[place] : bottom[place] + 1, left[place] : right[place] + 1] == place + 1
        outer[place] = crofton(_filled_crossings(part), step)[0]
    ferets = _ferets(runs, count, step)
    return Shapes(
        (x + 0.5) * wide,
        (y + 0.5) * high,
        area * high * wide,
        left.astype(np.float64),
        top.astype(np.float64),
        (right - left + 1).astype(np.float64),
        (bottom - top + 1).astype(np.float64),
        outer,
        total,
        *ferets,
        np.sqrt(long / short),
        orientation,
        holes.astype(np.float64),
    )


def runs_of(labels: NDArray[np.int32]) -> Runs:
    """Return the runs of numbered pixels along rows, sorted by their number, then row."""
    height, width = labels.shape
    edge = np.ones((height, width + 1), bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=edge[:, 1:-1])
    flat = np.flatnonzero(edge)
    row, column = np.divmod(flat, width + 1)
    # Each run ends where the next one of the row begins; the last edge of a row begins none.
    begins = column < width
    stop = np.empty_like(column)
    stop[:-1] = column[1:] - 1
    row, start, stop = row[begins], column[begins], stop[begins]
    label = labels[row, start].astype(np.int64)
    own = label > 0
    label, row, start, stop = label[own], row[own], start[own], stop[own]
    order = np.argsort(label, kind="stable")
    return Runs(label[order], row[order], start[order], stop[order])


def _sum(runs: Runs, values: Floats, count: int) -> Floats:
    return np.asarray(np.bincount(runs.label, values, count + 1)[1:], np.float64)


def _centres(runs: Runs, count: int) -> tuple[Floats, Floats, Floats]:
    """Return areas and centres of mass, columns and rows from the first one's middle."""
    length = (runs.stop - runs.start + 1).astype(np.float64)
    area = _sum(runs, length, count)
    x = _sum(runs, length * (runs.start + runs.stop) / 2, count) / area
    y = _sum(runs, length * runs.row, count) / area
    return area, x, y


def _axes(
    runs: Runs, count: int, area: Floats, x: Floats, y: Floats, step: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """Return the variances along both axes of inertia, and the long one's direction in degrees.

    Each pixel has the variance 1/12 of a square, so that a rectangle has that of a rectangle.
    """
    length = (runs.stop - runs.start + 1).astype(np.float64)
    own = runs.label - 1
    across = (runs.start + runs.stop) / 2 - x[own]
    down = runs.row - y[own]
    high, wide = step
    xx = _sum(runs, length * (length**2 - 1) / 12 + length * across**2, count) / area + 1 / 12
    yy = _sum(runs, length * down**2, count) / area + 1 / 12
    xy = _sum(runs, length * across * down, count) / area
    xx, yy, xy = xx * wide**2, yy * high**2, xy * wide * high
    half, root = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    # Rows count downwards, angles upwards.
    angle = np.degrees(0.5 * np.arctan2(-2 * xy, xx - yy)) % 180
    angle[root < 1e-9 * half] = np.nan
    return half + root, half - root, angle


def _boxes(runs: Runs, count: int) -> tuple[NDArray[np.int64], ...]:
    """Return first and last row, first and last column of each object."""
    where = np.searchsorted(runs.label, np.arange(1, count + 1))
    if not count:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty, empty
    return (
        np.minimum.reduceat(runs.row, where),
        np.maximum.reduceat(runs.row, where),
        np.minimum.reduceat(runs.start, where),
        np.maximum.reduceat(runs.stop, where),
    )


def _crossings(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return how often lines through pixel centres enter or leave each object, (4, N).

    Lines run along rows, columns and both diagonals; beyond the field nothing goes on.
    """
    around = np.pad(labels, 1)
    pairs = [
        (around[1:-1, :-1], around[1:-1, 1:]),
        (around[:-1, 1:-1], around[1:, 1:-1]),
        (around[:-1, :-1], around[1:, 1:]),
        (around[:-1, 1:], around[1:, :-1]),
    ]
    found = np.zeros((4, count + 1), np.int64)
    for number, (first, second) in enumerate(pairs):
        differ = first != second
        for side in (first, second):
            found[number] += np.bincount(side[differ], minlength=count + 1)
    return found[:, 1:]


def crofton(crossings: NDArray[np.int64], step: tuple[float, float] = (1.0, 1.0)) -> Floats:
    """Return lengths of outlines from their crossings with lines in four directions.

    Cauchy and Crofton: the length is half the integral of the crossings over all lines. Each
    direction stands for the angles nearest to it (Serra 1982, chapter V).

    Args:
        crossings: (4, N) along rows, columns and both diagonals.
        step: height and width of a pixel.
    """
    high, wide = step
    angle = math.atan2(high, wide)
    between = high * wide / math.hypot(high, wide)
    weights = (
        *(angle * high, (math.pi / 2 - angle) * wide),
        *(math.pi / 4 * between, math.pi / 4 * between),
    )
    return 0.5 * np.asarray(weights) @ crossings


def _filled_crossings(part: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the crossings of one object with its holes filled, (4, 1)."""
    around = np.pad(part, 1)
    # What is reached from the corner by edges of pixels lies outside.
    outside = cv2.connectedComponents((~around).astype(np.uint8), connectivity=4)[1]
    whole = (outside != outside[0, 0]).astype(np.int32)
    return _crossings(whole[1:-1, 1:-1], 1)


def _euler(labels: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return parts minus holes of each object, (N,), from squares of 2 x 2 pixels (Gray 1971)."""
    around = np.pad(labels, 1)
    corners = (around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:])
    mixed = corners[0] != corners[1]
    for other in corners[2:]:
        mixed |= corners[0] != other
    a, b, c, d = (corner[mixed] for corner in corners)
    four = (a, b, c, d)
    total = np.zeros(count + 1)
    for place, label in enumerate(four):
        alike = np.sum([label == other for other in four], axis=0)
        diagonal = label == four[3 - place]
        # A pattern of k pixels is met k times, once from each of them.
        score = np.select([alike == 1, alike == 3, (alike == 2) & diagonal], [1.0, -1 / 3, -1.0], 0)
        total += np.bincount(label, score, count + 1)
    return np.rint(total[1:] / 4).astype(np.int64)


def _ferets(
    runs: Runs, count: int, step: tuple[float, float]
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return largest and smallest Feret diameter, angle of the largest, area of the hull."""
    longest, shortest, angles, hulls = (np.zeros(count) for _ in range(4))
    ends = np.searchsorted(runs.label, np.arange(1, count + 2))
    corners = np.empty((len(runs.row), 4, 2), np.int32)
    corners[:, :2, 0] = runs.start[:, None]
    corners[:, 2:, 0] = runs.stop[:, None] + 1
    corners[:, ::2, 1] = runs.row[:, None]
    corners[:, 1::2, 1] = runs.row[:, None] + 1
    scale = np.array(step[::-1])
    for place in range(count):
        own = corners[ends[place] : ends[place + 1]].reshape(-1, 1, 2)
        hull = cv2.convexHull(own)[:, 0] * scale
        after = np.roll(hull, -1, axis=0)
        edge = after - hull
        between = hull[:, None] - hull[None]
        squares = np.einsum("ijk,ijk->ij", between, between)
        first, second = divmod(int(squares.argmax()), len(hull))
        across, down = hull[second] - hull[first]
        longest[place] = math.sqrt(squares[first, second])
        angles[place] = math.degrees(math.atan2(-down, across)) % 180
        doubled = hull[:, 0] * after[:, 1] - hull[:, 1] * after[:, 0]
        hulls[place] = abs(doubled.sum()) / 2
        # The smallest width has a side of the hull on one of its tangents.
        normal = np.stack([-edge[:, 1], edge[:, 0]], axis=1)
        width = np.abs(np.einsum("ijk,jk->ij", between, normal)).max(axis=0)
        shortest[place] = (width / np.hypot(edge[:, 0], edge[:, 1])).min()
    return longest, shortest, angles, hulls
