"""Touching objects apart: watershed of the distance to the edge, maxima merged by their dynamic."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core import geometry

# Depth of the neck between two objects, as a share of the radius of the smaller one, and in pixels,
# where nothing else is asked for: rough outlines make necks of about a pixel.
SHARE, LEAST = 0.1, 1.0


def separated(
    inside: NDArray[np.bool_], unknown: NDArray[np.bool_], depth: float | None = None
) -> NDArray[np.int32]:
    """Return the objects of a class with touching ones apart, int32 (H, W), 0 outside.

    The distance of each pixel to the nearest one outside is a landscape with a peak in the middle
    of each object. Two peaks are one object where the lower one rises less than ``depth`` above the
    saddle between them: its dynamic (Grimaud 1992, doi 10.1117/12.60656). Unlike h-maxima this
    merges two peaks of equal height, too. The watershed (Beucher and Meyer 1993) draws the line.

    Args:
        inside: pixels of the class (H, W).
        unknown: pixels that count nowhere (H, W); like what lies beyond the field, they end no
            object, so that one that is cut has its peak at the cut.
        depth: in pixels; None for the larger of LEAST and SHARE of the lower peak.
    """
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    outside = ~(inside | unknown)
    if not inside.any() or not outside.any():
        return inside.astype(np.int32)
    distance = geometry.distances(~outside)
    distance[~inside] = 0
    peaks = local_maxima(distance, connectivity=2) & inside
    count, seeds = cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)
    if unknown.any():
        count, seeds = _all_seeded(inside, seeds, count)
    basins = np.asarray(watershed(-distance, seeds, connectivity=2, mask=inside), np.int32)
    heights = np.zeros(count)
    np.maximum.at(heights, basins[peaks], distance[peaks])
    pairs, saddles = _saddles(basins, distance, count)
    return _merged(pairs, saddles, heights, depth)[basins]


def _all_seeded(
    inside: NDArray[np.bool_], seeds: NDArray[np.int32], count: int
) -> tuple[int, NDArray[np.int32]]:
    """Give a seed to parts whose peak lies in pixels that count nowhere."""
    number, parts = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)
    seeded = np.zeros(number, bool)
    seeded[parts[seeds > 0]] = True
    seeded[0] = True
    bare = np.flatnonzero(~seeded)
    numbers = np.zeros(number, seeds.dtype)
    numbers[bare] = count + np.arange(len(bare))
    return count + len(bare), np.where(seeds > 0, seeds, numbers[parts])


def _saddles(
    basins: NDArray[np.int32], distance: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return pairs of basins that touch, (N, 2), and how high the pass between them is, (N,)."""
    keys, heights = [], []
    for first, second in _neighbours(basins.shape):
        a, b = basins[first], basins[second]
        meets = (a != b) & (a > 0) & (b > 0)
        low = np.minimum(a[meets], b[meets]).astype(np.int64)
        keys.append(low * count + np.maximum(a[meets], b[meets]))
        heights.append(np.minimum(distance[first][meets], distance[second][meets]))
    key, height = np.concatenate(keys), np.concatenate(heights).astype(np.float64)
    found, where = np.unique(key, return_inverse=True)
    top = np.zeros(len(found))
    np.maximum.at(top, where, height)
    return np.stack([found // count, found % count], axis=1), top


def _neighbours(shape: tuple[int, ...]) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return the parts of an array that hold each pixel and its neighbour, in four directions."""
    all_, less, more = slice(None), slice(None, -1), slice(1, None)
    return [
        ((all_, less), (all_, more)),
        ((less, all_), (more, all_)),
        ((less, less), (more, more)),
        ((less, more), (more, less)),
    ]


def _merged(
    pairs: NDArray[np.int64],
    saddles: NDArray[np.float64],
    heights: NDArray[np.float64],
    depth: float | None,
) -> NDArray[np.int32]:
    """Return the number of the object of each basin, (count,), 0 for none.

    Passes are crossed from the highest down; a peak is then compared at the pass to the nearest
    higher one, which is what its dynamic is.
    """
    parent = list(range(len(heights)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    top = heights.copy()
    for place in np.argsort(-saddles, kind="stable").tolist():
        a, b = root(int(pairs[place, 0])), root(int(pairs[place, 1]))
        if a == b:
            continue
        lower, higher = (a, b) if top[a] < top[b] else (b, a)
        wanted = max(LEAST, SHARE * top[lower]) if depth is None else depth
        if top[lower] - saddles[place] < wanted:
            parent[lower] = higher
    roots = np.array([root(place) for place in range(len(heights))])
    _, numbers = np.unique(roots[1:], return_inverse=True)
    return np.concatenate([[0], numbers + 1]).astype(np.int32)
