"""Manual point count (ASTM E562) on masks: a grid of points, 1 in the phase, 1/2 on its border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.measure import intervals
from matssl.measure.intervals import Fraction


@dataclass(frozen=True)
class Hits:
    """The points of one field.

    Attributes:
        points: of the grid that count; those on pixels of no class do not.
        on: points on each class, those on a border as halves, float64 (C,).
        border: how many points lie on a border.
    """

    points: int
    on: NDArray[np.float64]
    border: int


def places(length: int, number: int) -> NDArray[np.int64]:
    """Return the corners between pixels on which the points of a side lie, int64 (number,).

    Points are evenly spaced with half a space at both ends, moved by at most half a pixel to where
    pixels meet: there a point lies in a phase or on its border, whatever the size of the field.

    Args:
        length: pixels of the side.
        number: of points along it.
    """
    exact = (np.arange(number) + 0.5) * length / number
    return np.clip(np.rint(exact), 1, max(1, length - 1)).astype(np.int64)


@dataclass(frozen=True)
class Grid:
    """The points of a field that count, N of them.

    Attributes:
        x: columns left of each, float64 (N,).
        y: rows above it.
        on: what each counts for each class, 0, 1/2 or 1, float64 (C, N).
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    on: NDArray[np.float64]


def grid(mask: NDArray[np.uint8], num_classes: int, rows: int, columns: int) -> Grid:
    """Return the points of a grid and what they hit.

    A point lies where four pixels meet: on a class where all four are of it, on its border where
    some are, which counts one half. Where one of the four belongs to no class it does not count.

    Args:
        mask: class indices (H, W) of at least 2 x 2 pixels; from ``num_classes`` on none.
        num_classes: how many classes.
        rows: of the grid.
        columns: of it.
    """
    down, right = (places(n, k) for n, k in zip(mask.shape, (rows, columns), strict=True))
    around = np.stack([mask[np.ix_(down - a, right - b)].ravel() for a in (1, 0) for b in (1, 0)])
    known = (around < num_classes).all(axis=0)
    shares = np.stack([(around == kind).sum(axis=0) for kind in range(num_classes)])[:, known]
    y, x = (side.ravel()[known] for side in np.meshgrid(down, right, indexing="ij"))
    on = np.where(shares == 4, 1.0, np.where(shares > 0, 0.5, 0.0))
    return Grid(x.astype(np.float64), y.astype(np.float64), on)


def count(mask: NDArray[np.uint8], num_classes: int, rows: int, columns: int) -> Hits:
    """Return how many points of a grid hit each class; see :func:`grid`."""
    found = grid(mask, num_classes, rows, columns)
    border = int(np.count_nonzero((found.on == 0.5).any(axis=0)))
    return Hits(len(found.x), found.on.sum(axis=1), border)


def over_fields(hits: Sequence[tuple[float, int]]) -> Fraction | None:
    """Return the point fraction of a phase over fields, and what ASTM E562 says of it.

    Args:
        hits: points on the phase and points that count, of each field.

    Returns:
        None where no field has a point.
    """
    known = [on / points for on, points in hits if points]
    return intervals.fraction(known) if known else None
