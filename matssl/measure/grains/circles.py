"""Test circles: Hilliard's single one and Abrams' three, which see all directions alike (E112)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.measure.grains.intercept import Hits

# Diameters of Abrams' circles: 79.58 : 53.05 : 26.53, 500 mm in all as they are printed.
ABRAMS = (1.0, 53.05 / 79.58, 26.53 / 79.58)
HILLIARD = (1.0,)
# The largest circle over the shorter side of the field, and places along each side.
LARGEST, PLACES = 0.6, 15
# Pixels to each side of a point that say which grain it lies in.
AROUND = 2


@dataclass(frozen=True)
class Circle:
    """A circle on a field: its centre in pixels (the first pixel's centre is 0), its radius."""

    row: float
    column: float
    radius: float


def placed(height: int, width: int, diameters: Sequence[float]) -> list[Circle]:
    """Return concentric circles at places spread evenly over a field.

    One place sees a small part of the field: the pattern is put down at 15 x 15 of them, as the
    standard wants it on several fields.

    Args:
        height: of the field in pixels.
        width: of the field in pixels.
        diameters: of the circles over the largest one.
    """
    radius = largest(height, width)
    rows = np.linspace(radius, height - 1 - radius, PLACES).tolist()
    columns = np.linspace(radius, width - 1 - radius, PLACES).tolist()
    return [Circle(r, c, radius * d) for r in rows for c in columns for d in diameters]


def largest(height: int, width: int) -> float:
    """Return the radius of the largest circle on a field, in pixels."""
    return LARGEST * max(0, min(height, width) - 1) / 2


def along(labels: NDArray[np.int32], circles: Sequence[Circle]) -> Hits:
    """Return the hits of circles, counted as on lines: steps of about a pixel, round to the start.

    A circle does not go through centres of pixels. The grain at a point is the one with most of the
    pixels around it, weighted by a Gaussian of one pixel: the nearest pixel alone would make
    stairs of the boundaries, which a circle that runs along one crosses again and again (4 % too
    many hits).

    Args:
        labels: number of each pixel's grain from 1 on, 0 where it counts nowhere, (H, W).
        circles: that lie in the field.
    """
    total = Hits()
    if not circles:
        return total
    field = _Field(labels)
    for one in circles:
        steps = max(8, math.ceil(2 * math.pi * one.radius))
        turn = 2 * math.pi * np.arange(steps) / steps
        rows = one.row - one.radius * np.sin(turn)
        columns = one.column + one.radius * np.cos(turn)
        total += _closed(field.at(rows, columns), 2 * math.pi * one.radius / steps)
    return total


class _Field:
    """Grains at points between the centres of pixels."""

    def __init__(self, labels: NDArray[np.int32]) -> None:
        self.labels = np.pad(labels, AROUND, mode="edge")
        size = 2 * AROUND + 1
        square = np.ones((size, size), np.uint8)
        values = self.labels.astype(np.float32)
        self.mixed = cv2.erode(values, square) != cv2.dilate(values, square)
        self.offsets = np.arange(-AROUND, AROUND + 1)

    def at(self, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return the grain at each point, (N,)."""
        r, c = np.rint(rows).astype(int), np.rint(columns).astype(int)
        found = self.labels[r + AROUND, c + AROUND]
        open_ = np.flatnonzero(self.mixed[r + AROUND, c + AROUND])
        if not len(open_):
            return found
        r, c = r[open_, None], c[open_, None]
        down = np.exp(-((r + self.offsets - rows[open_, None]) ** 2) / 2)
        right = np.exp(-((c + self.offsets - columns[open_, None]) ** 2) / 2)
        weights = (down[:, :, None] * right[:, None, :]).reshape(len(open_), -1)
        own_rows = (r + AROUND + self.offsets)[:, :, None]
        own_columns = (c + AROUND + self.offsets)[:, None, :]
        near = self.labels[own_rows, own_columns].reshape(len(open_), -1)
        same = near[:, :, None] == near[:, None, :]
        votes = np.einsum("nij,nj->ni", same.astype(np.float32), weights.astype(np.float32))
        found[open_] = near[np.arange(len(open_)), votes.argmax(axis=1)]
        return found


def _closed(met: NDArray[np.int32], step: float) -> Hits:
    """Return the hits of a line that comes back to its start.

    Args:
        met: grain at each step.
        step: its length in pixels.
    """
    next_, last = np.roll(met, -1), np.roll(met, -2)
    counted = (met > 0) & (next_ > 0)
    alone = counted & (last > 0) & (met != next_) & (next_ != last)
    touches = int((alone & (met == last)).sum())
    changes = int(((met != next_) & counted).sum())
    return Hits(changes, touches, int(alone.sum()) - touches, float(counted.sum()) * step)
