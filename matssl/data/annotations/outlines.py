"""Masks as polygons that follow the edges of pixels, with holes: read back they are the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from matssl.data.annotations.drawing import Points

# Directions in the order of right turns, y pointing down.
EAST, SOUTH, WEST, NORTH = range(4)


def polygons(mask: NDArray[np.bool_]) -> list[list[Points]]:
    """Return the parts of a mask as rings in whole numbers, the corners of their pixels.

    Of each part the outer ring comes first (clockwise on the screen), then its holes (the other
    way about). Pixels that touch at a corner alone are two parts. No ring passes a point twice; two
    rings of a part may touch in points, as OGC's simple features allow.

    Args:
        mask: bool (rows, columns).

    Returns:
        A list of parts, ordered by the first pixel, row by row; a ring is float64 (N, 2).
    """
    from scipy import ndimage

    if not mask.any():
        return []
    parts, number = ndimage.label(mask)
    start, after = _edges(mask)
    x, y = start[:, 0].tolist(), start[:, 1].tolist()
    found: list[list[Points]] = [[] for _ in range(number)]
    for edges in _rings(after.tolist(), x, y):
        corners = start[edges]
        part = found[int(parts[_inside(corners)]) - 1]
        # One of a part's rings encloses it and goes first; it alone is clockwise.
        part.insert(0 if _clockwise(corners) else len(part), corners.astype(np.float64))
    return found


def _edges(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the straight edges of a mask: where each starts (x, y), and which one follows it.

    All run so that the mask is to their right. Where two pixels touch at a corner, the next edge
    is that of the same pixel.
    """
    grid = np.pad(mask, 1)
    above, left = np.zeros_like(grid), np.zeros_like(grid)
    above[1:], left[:, 1:] = grid[:-1], grid[:, :-1]
    starts: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    headings: list[NDArray[np.int64]] = []
    for heading, units in (
        (EAST, grid & ~above),
        (WEST, above & ~grid),
        (SOUTH, (left & ~grid).T),
        (NORTH, (grid & ~left).T),
    ):
        before = np.zeros_like(units)
        before[:, 1:] = units[:, :-1]
        line, first = np.nonzero(units & ~before)
        # The last column is outside the mask, and no run reaches it.
        last = np.nonzero(before & ~units)[1]
        ahead, behind = (first, last) if heading in (EAST, SOUTH) else (last, first)
        for place, kept in ((ahead, starts), (behind, ends)):
            flat = heading in (EAST, WEST)
            kept.append(np.stack([place, line] if flat else [line, place], axis=1))
        headings.append(np.full(len(line), heading))
    start, end, headed = (np.concatenate(parts) for parts in (starts, ends, headings))

    def keys(points: NDArray[np.int64], toward: NDArray[np.int64]) -> NDArray[np.int64]:
        return (points[:, 1] * grid.shape[1] + points[:, 0]) * 4 + toward

    own = keys(start, headed)
    order = np.argsort(own)
    own = own[order]
    right, other = keys(end, (headed + 1) % 4), keys(end, (headed + 3) % 4)
    place = np.minimum(np.searchsorted(own, right), len(own) - 1)
    place = np.where(own[place] == right, place, np.searchsorted(own, other))
    return start - 1, order[place]


def _rings(after: list[int], x: list[int], y: list[int]) -> Iterator[list[int]]:
    """Yield rings as lists of edges; one that comes to a point again is cut there in two."""
    open_edges = [True] * len(after)
    for first in range(len(after)):
        if not open_edges[first]:
            continue
        way: list[int] = []
        seen: dict[tuple[int, int], int] = {}
        edge = first
        while open_edges[edge]:
            open_edges[edge] = False
            point = x[edge], y[edge]
            if point in seen:
                at = seen[point]
                yield way[at:]
                for done in way[at:]:
                    del seen[x[done], y[done]]
                del way[at:]
            seen[point] = len(way)
            way.append(edge)
            edge = after[edge]
        yield way


def _inside(corners: NDArray[np.int64]) -> tuple[int, int]:
    """Return row and column of the pixel to the right of a ring's first edge."""
    (x0, y0), (x1, y1) = corners[:2].tolist()
    if y0 == y1:
        return (y0, x0) if x1 > x0 else (y0 - 1, x0 - 1)
    return (y0, x0 - 1) if y1 > y0 else (y0 - 1, x0)


def _clockwise(corners: NDArray[np.int64]) -> bool:
    x, y = corners[:, 0], corners[:, 1]
    return int(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) > 0
