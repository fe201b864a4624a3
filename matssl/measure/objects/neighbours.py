"""Nearest neighbours, and whether objects cluster, with what the edge of a field hides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core import geometry
from matssl.measure.objects.shapes import Floats

# Fewer distances tell nothing of an arrangement.
MIN_POINTS = 10


@dataclass(frozen=True)
class Neighbours:
    """Distances of N points to the nearest other one, in pixels.

    Attributes:
        distance: float64 (N,); NaN for a single point.
        known: whether no nearer one can lie beyond the edge, bool (N,).
        weight: of a distance in means, float64 (N,); 0 where it is not known.
    """

    distance: Floats
    known: NDArray[np.bool_]
    weight: Floats


def nearest(x: Floats, y: Floats, unknown: NDArray[np.bool_]) -> Neighbours:
    """Return the distances of points to their nearest neighbours, and which of them count.

    Of a point that lies nearer to the edge than to its neighbour another one may be nearer: it is
    left out. Since this strikes long distances more often, those that are left weigh the area of
    the field over that of the part that lies farther from the edge (Hanisch 1984).

    Args:
        x: from the left edge in pixels, (N,).
        y: from the upper edge.
        unknown: pixels that count nowhere (H, W).
    """
    from scipy.spatial import cKDTree

    count = len(x)
    if count < 2:
        return Neighbours(np.full(count, np.nan), np.zeros(count, bool), np.zeros(count))
    points = np.stack([x, y], axis=1)
    distance = np.asarray(cKDTree(points).query(points, k=2)[0][:, 1])
    height, width = unknown.shape
    if unknown.any():
        depth = geometry.distances(np.pad(~unknown, 1))[1:-1, 1:-1]
        # From the middle of a pixel to the edge it is half a pixel less than to the next middle.
        depth = np.maximum(depth - 0.5, 0)
        border = depth[y.astype(int).clip(0, height - 1), x.astype(int).clip(0, width - 1)]
        order = np.sort(depth[~unknown])
        far = len(order) - np.searchsorted(order, distance, side="left")
        whole: float = len(order)
    else:
        border = np.minimum(np.minimum(x, width - x), np.minimum(y, height - y))
        far = np.maximum(width - 2 * distance, 0) * np.maximum(height - 2 * distance, 0)
        whole = width * height
    known = distance <= border
    weight = np.where(known, whole / np.maximum(far, 1), 0.0)
    return Neighbours(distance, known, weight)


def clark_evans(distance: Floats, weight: Floats, density: float) -> float | None:
    """Return the mean distance over that of points at random, 1 / (2 sqrt(density)).

    Clark and Evans 1954: below 1 points cluster, above 1 they keep apart.

    Args:
        distance: to the nearest neighbour, (N,).
        weight: of each; 0 where it is not known.
        density: points per area, in the unit of the distances.

    Returns:
        None below MIN_POINTS known distances.
    """
    known = weight > 0
    if int(known.sum()) < MIN_POINTS or density <= 0:
        return None
    mean = float(np.average(distance[known], weights=weight[known]))
    return mean * 2 * math.sqrt(density)
