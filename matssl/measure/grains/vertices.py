"""Points where three grains meet: their borders are carried on straight through the drawn line.

The nearest grain of a pixel is right along a line, but not where three lines meet: the tip of an
acute grain is drawn over, and what is nearest cuts it off. A line three pixels wide loses two per
cent of the boundary hits so in grains of 50 pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

# Length of border in pixels, beyond the drawn line, that shows where it runs.
SHOWN = 6
# Points of a border that show its direction.
LEAST = 4
# Borders that are nearly one straight line meet nowhere in particular: smallest eigenvalue of the
# sum of their normals' outer products.
CLEAR = 0.02


@dataclass(frozen=True)
class _Borders:
    """Midpoints between neighbours of different grains: rows and columns (N, 2), both numbers."""

    points: NDArray[np.float64]
    low: NDArray[np.int32]
    high: NDArray[np.int32]
    tree: cKDTree


@dataclass(frozen=True)
class _Arm:
    """A border of two grains near a vertex: a point on it, the grains."""

    point: NDArray[np.float64]
    grains: frozenset[int]


def sharpened(
    labels: NDArray[np.int32], band: NDArray[np.bool_], far: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Return labels whose drawn pixels near vertices belong to the grain between straight borders.

    Args:
        labels: number of each pixel's grain, drawn pixels shared out to the nearest, (H, W).
        band: drawn pixels; no others change.
        far: distance of each pixel from the nearest that is not drawn.
    """
    quads = np.stack([labels[:-1, :-1], labels[:-1, 1:], labels[1:, :-1], labels[1:, 1:]])
    ordered = np.sort(quads, axis=0)
    many = (ordered[1:] != ordered[:-1]).sum(axis=0) >= 2
    # A line of one pixel cuts off next to nothing.
    thick = far[:-1, :-1] + far[1:, 1:] > 2
    parts, number = ndimage.label(many, np.ones((3, 3)))
    if not number:
        return labels
    result, borders = labels.copy(), _borders(labels)
    for part, place in enumerate(ndimage.find_objects(parts), 1):
        own = parts[place] == part
        grains = np.unique(quads[(slice(None), *place)][:, own])
        if len(grains) != 3 or grains[0] == 0 or not thick[place][own].any():
            continue
        rows, columns = np.nonzero(own)
        start = np.array([rows.mean() + place[0].start, columns.mean() + place[1].start]) + 0.5
        reach = float(far[place][own].max())
        found = _vertex(borders, start, reach, grains)
        if found is not None:
            _redivide(result, band, *found, reach + 1 + float(np.hypot(*(found[0] - start))))
    return result


def _borders(labels: NDArray[np.int32]) -> _Borders:
    across = np.argwhere(labels[:, 1:] != labels[:, :-1])
    down = np.argwhere(labels[1:] != labels[:-1])
    points = np.concatenate([across + (0, 0.5), down + (0.5, 0)])
    first = np.concatenate([labels[tuple(across.T)], labels[tuple(down.T)]])
    second = np.concatenate([labels[tuple((across + (0, 1)).T)], labels[tuple((down + (1, 0)).T)]])
    low, high = np.minimum(first, second), np.maximum(first, second)
    return _Borders(points, low, high, cKDTree(points))


def _vertex(
    borders: _Borders, start: NDArray[np.float64], reach: float, grains: NDArray[np.int32]
) -> tuple[NDArray[np.float64], list[_Arm]] | None:
    """Return the point that the three borders run to, and these; None where they do not show it.

    Args:
        borders: of all grains.
        start: where they meet so far.
        reach: half width of the drawn line there.
        grains: numbers of the three.
    """
    near = np.array(borders.tree.query_ball_point(start, 4 * reach + SHOWN + 6), np.int64)
    points, low, high = borders.points[near], borders.low[near], borders.high[near]
    centre: NDArray[np.float64] = start
    arms: list[_Arm] = []
    # The second time from where the first one led to.
    for _ in range(2):
        distance = np.hypot(*(points - centre).T)
        shown = (distance >= reach + 1) & (distance <= 2 * reach + 1 + SHOWN)
        sums, moments, arms = np.zeros((2, 2)), np.zeros(2), []
        for a, b in ((0, 1), (0, 2), (1, 2)):
            own = points[shown & (low == grains[a]) & (high == grains[b])]
            if len(own) < LEAST:
                return None
            middle = own.mean(axis=0)
            outer = _across(own - middle)
            sums, moments = sums + outer, moments + outer @ middle
            arms.append(_Arm(middle, frozenset((int(grains[a]), int(grains[b])))))
        if np.linalg.eigvalsh(sums)[0] < CLEAR:
            return None
        centre = np.linalg.solve(sums, moments).astype(np.float64)
        if np.hypot(*(centre - start)) > 2.5 * reach + 1:
            return None
    return centre, arms


def _across(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outer product of the normal of the straight line through points about 0, (2, 2).

    The direction of the line is half the angle of (s_rr − s_cc, 2 s_rc).
    """
    (rr, rc), (_, cc) = points.T @ points
    turn = math.atan2(2 * rc, rr - cc) / 2
    normal = np.array([-math.sin(turn), math.cos(turn)])
    return normal[:, None] * normal


def _redivide(
    labels: NDArray[np.int32],
    band: NDArray[np.bool_],
    centre: NDArray[np.float64],
    arms: list[_Arm],
    radius: float,
) -> None:
    """Give the drawn pixels about a vertex to the grain between whose two borders they lie."""
    low = np.maximum(np.floor(centre - radius), 0).astype(int)
    high = np.maximum(np.ceil(centre + radius) + 1, 0).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    part = labels[window]
    y, x = np.ogrid[: part.shape[0], : part.shape[1]]
    dy, dx = y + low[0] - centre[0], x + low[1] - centre[1]
    grains = frozenset().union(*(arm.grains for arm in arms))
    own = band[window] & (dy**2 + dx**2 <= radius**2) & np.isin(part, list(grains))
    turns = [float(np.arctan2(*(arm.point - centre))) for arm in arms]
    order = np.argsort(turns)
    sector = np.searchsorted(np.array(turns)[order], np.arctan2(dy, dx)) % len(arms)
    between = [
        next(iter(arms[order[i - 1]].grains & arms[order[i]].grains)) for i in range(len(arms))
    ]
    part[own] = np.array(between, labels.dtype)[sector][own]
