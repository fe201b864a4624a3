"""Polycrystals whose grain size is known exactly: Voronoi cells, their edges clipped to the field.

The edges are straight, so that what every method of ASTM E112 should find follows from geometry:
boundary hits per length of a dense bundle of test lines are the sum of the edges' projections over
the area of the field; hits of a circle are points where segments cross it; grains inside, at an
edge and at a corner are cells of the nearest seed. Nothing of it goes through a boundary mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Voronoi, cKDTree

# Cells are drawn in a region that reaches so many mean cell sides beyond the field.
BEYOND = 6


@dataclass(frozen=True)
class Polycrystal:
    """A field of a polycrystal; x to the right, y down, pixel (r, c) centred at (c + ½, r + ½).

    Attributes:
        labels: number of the cell of each pixel from 1 on, int32 (H, W).
        edges: its boundaries as segments x0, y0, x1, y1 in pixels, clipped to the field, (N, 4).
    """

    labels: NDArray[np.int32]
    edges: NDArray[np.float64]

    def hits_per_length(self, degrees: float) -> float:
        """Return the boundary hits per pixel of infinitely dense test lines in a direction.

        Args:
            degrees: counter-clockwise from x, y up.
        """
        turn = np.radians(degrees)
        dx, dy = self.edges[:, 2] - self.edges[:, 0], self.edges[:, 1] - self.edges[:, 3]
        return float(np.abs(dx * np.sin(turn) - dy * np.cos(turn)).sum() / self.labels.size)

    @property
    def length_per_area(self) -> float:
        """Boundary length per area, 1/px."""
        x0, y0, x1, y1 = self.edges.T
        return float(np.hypot(x1 - x0, y1 - y0).sum() / self.labels.size)

    def circle_hits(self, x: float, y: float, radius: float) -> int:
        """Return at how many points the boundaries cross a circle."""
        start = self.edges[:, :2] - (x, y)
        step = self.edges[:, 2:] - self.edges[:, :2]
        a = (step**2).sum(axis=1)
        b = 2 * (start * step).sum(axis=1)
        c = (start**2).sum(axis=1) - radius**2
        inside = b**2 - 4 * a * c
        met = inside > 0
        root = np.sqrt(inside[met])
        times = np.stack([(-b[met] - root), (-b[met] + root)]) / (2 * a[met])
        return int(((times >= 0) & (times < 1)).sum())

    def mask(self, width: float) -> NDArray[np.bool_]:
        """Return the pixels whose centre lies within half a width of a boundary, (H, W)."""
        height, columns = self.labels.shape
        found = np.zeros((height, columns), bool)
        reach = width / 2 + 1
        for x0, y0, x1, y1 in self.edges:
            left, right = int(max(0, min(x0, x1) - reach)), int(max(x0, x1) + reach + 1)
            top, bottom = int(max(0, min(y0, y1) - reach)), int(max(y0, y1) + reach + 1)
            part = found[top:bottom, left:right]
            y, x = np.ogrid[: part.shape[0], : part.shape[1]]
            px, py = x + (left + 0.5 - x0), y + (top + 0.5 - y0)
            dx, dy = x1 - x0, y1 - y0
            along = np.clip((px * dx + py * dy) / max(dx**2 + dy**2, 1e-12), 0, 1)
            part |= (px - along * dx) ** 2 + (py - along * dy) ** 2 <= width**2 / 4
        return found


def polycrystal(
    height: int,
    width: int,
    side: float,
    generator: np.random.Generator,
    stretch: float = 1.0,
    degrees: float = 0.0,
) -> Polycrystal:
    """Return Poisson-Voronoi grains, stretched along a direction at equal area.

    Args:
        height: of the field in pixels.
        width: of the field in pixels.
        side: square root of the mean cell area in pixels.
        generator: of the seeds.
        stretch: length over width of the mean grain.
        degrees: direction in which they are stretched, counter-clockwise from x, y up.
    """
    reach = BEYOND * side * stretch + np.hypot(height, width) / 2
    count = generator.poisson((2 * reach / side) ** 2)
    seeds = generator.uniform(-reach, reach, (count, 2))
    return of_seeds(seeds, height, width, stretch, degrees)


def of_seeds(
    seeds: NDArray[np.float64],
    height: int,
    width: int,
    stretch: float = 1.0,
    degrees: float = 0.0,
) -> Polycrystal:
    """Return the Voronoi cells of seeds about the centre of the field, (N, 2) as x, y with y up."""
    turn = np.radians(degrees)
    turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    sides = np.array([np.sqrt(stretch), 1 / np.sqrt(stretch)])
    centre = np.array([width / 2, height / 2])
    found = Voronoi(seeds)
    ends = np.array([pair for pair in found.ridge_vertices if min(pair) >= 0])
    points = (found.vertices * sides) @ turned.T * (1, -1) + centre
    edges = clipped(np.hstack([points[ends[:, 0]], points[ends[:, 1]]]), height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    pixels = np.stack([x.ravel(), y.ravel()], axis=1)
    back = ((pixels - centre) * (1, -1)) @ turned / sides
    nearest = cKDTree(seeds).query(back)[1].reshape(height, width)
    return Polycrystal((nearest + 1).astype(np.int32), edges)


def clipped(edges: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return the parts of segments that lie in the field (Liang and Barsky)."""
    start, step = edges[:, :2], edges[:, 2:] - edges[:, :2]
    first, last = np.zeros(len(edges)), np.ones(len(edges))
    apart = np.zeros(len(edges), bool)
    for axis, size in ((0, width), (1, height)):
        for sign, limit in ((-1, 0.0), (1, float(size))):
            speed = sign * step[:, axis]
            room = sign * (limit - start[:, axis])
            with np.errstate(divide="ignore", invalid="ignore"):
                time = room / speed
            first = np.where(speed < 0, np.maximum(first, time), first)
            last = np.where(speed > 0, np.minimum(last, time), last)
            apart |= (speed == 0) & (room < 0)
    kept = (first < last) & ~apart
    return np.hstack([start + first[:, None] * step, start + last[:, None] * step])[kept]


def grain_count(labels: NDArray[np.int32]) -> float:
    """Return grains inside, half of those at an edge, a quarter a corner of the field."""
    at_edge = set(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]).tolist())
    corners = {int(labels[r, c]) for r in (0, -1) for c in (0, -1)}
    inside = len(set(np.unique(labels).tolist()) - at_edge)
    return inside + len(at_edge - corners) / 2 + 1


def sides(seed: int, count: int, low: float, high: float) -> Sequence[float]:
    """Return mean cell sides drawn evenly between two."""
    return np.random.default_rng(seed).uniform(low, high, count).tolist()
