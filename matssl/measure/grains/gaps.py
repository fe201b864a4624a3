"""Gaps in drawn grain boundaries: ends of the skeleton are carried on to the next boundary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

# The mask is carried on beyond the field by so many pixels, so that no line ends at its edge.
BEYOND = 8
# Pixels of the skeleton before an end that show where it points to.
STEPS = 6
# Cosine of the angle to that direction within which a line is carried on.
AHEAD = 0.5
RING = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def links(drawn: NDArray[np.bool_], widest: float) -> tuple[NDArray[np.bool_], int]:
    """Return the pixels that close gaps, bool (H, W), and how many gaps they close.

    The boundaries are thinned to their skeleton. From each end that is no spur of a thick line, the
    nearest piece of another branch that lies ahead is looked for; it is joined by a straight line
    where that runs over at most ``widest`` pixels that are not drawn. The edge of the field is such
    a piece as well.

    Args:
        drawn: the boundaries, (H, W).
        widest: gap in pixels.
    """
    added = np.zeros(drawn.shape, bool)
    if not drawn.any() or widest <= 0:
        return added, 0
    wide = np.pad(drawn, BEYOND, mode="edge")
    depth = ndimage.distance_transform_edt(wide)
    bones = skeletonize(wide)
    bones[[0, -1]], bones[:, [0, -1]] = False, False
    places = np.argwhere(bones)
    if not len(places):
        return added, 0
    tree, known = cKDTree(places), _Bones(bones, depth)
    grown = np.zeros(wide.shape, bool)
    for end in known.ends():
        path = known.path(end)
        if known.is_spur(path):
            continue
        reach = widest + 2 * float(depth[end]) + 4
        near = places[tree.query_ball_point(end, reach)]
        found = _best(known, wide, end, path, near, widest)
        if found is not None:
            rows, columns = _line(end, found)
            grown[rows, columns] = True
    inner = slice(BEYOND, -BEYOND)
    added = grown[inner, inner] & ~drawn
    return added, int(ndimage.label(added, np.ones((3, 3)))[1])


class _Bones:
    """A skeleton with the half width of its lines, and the walks along it."""

    def __init__(self, bones: NDArray[np.bool_], depth: NDArray[np.float64]) -> None:
        self.bones, self.depth = bones, depth
        around = ndimage.convolve(
            bones.astype(np.uint8), np.ones((3, 3), np.uint8), mode="constant"
        )
        self.neighbours = np.where(bones, around - 1, 0)

    def ends(self) -> list[tuple[int, int]]:
        """Return the pixels with one neighbour inside the field, row by row."""
        found = np.argwhere(self.neighbours == 1)
        low, high = BEYOND, np.array(self.bones.shape) - BEYOND
        inside = (found >= low).all(axis=1) & (found < high).all(axis=1)
        return [(int(r), int(c)) for r, c in found[inside]]

    def path(self, end: tuple[int, int], most: int = 4 * STEPS) -> list[tuple[int, int]]:
        """Return the pixels from an end on, up to the branching or so many steps."""
        walked = [end]
        while len(walked) < most:
            row, column = walked[-1]
            if self.neighbours[row, column] > 2:
                break
            around = [(row + r, column + c) for r, c in RING]
            ahead = [place for place in around if self.bones[place] and place not in walked]
            if not ahead:
                break
            walked.append(ahead[0])
        return walked

    def is_spur(self, path: list[tuple[int, int]]) -> bool:
        """Whether a branch is no longer than the line that it grows from is thick there."""
        if self.neighbours[path[-1]] == 2:
            return False
        return len(path) <= float(self.depth[path[-1]]) + 2

    def apart(self, end: tuple[int, int], near: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """Return those of some skeleton pixels that do not hang together with an end near it.

        Args:
            end: row and column.
            near: rows and columns, (N, 2), no farther away than the size.
            size: half of the window that is looked at.
        """
        corner = np.maximum(np.subtract(end, size), 0)
        rows, columns = (slice(c, e + size + 1) for c, e in zip(corner, end, strict=True))
        parts, _ = ndimage.label(self.bones[rows, columns], np.ones((3, 3)))
        own = parts[tuple(np.subtract(end, corner))]
        moved = near - corner
        return near[parts[moved[:, 0], moved[:, 1]] != own]


def _best(
    known: _Bones,
    drawn: NDArray[np.bool_],
    end: tuple[int, int],
    path: list[tuple[int, int]],
    near: NDArray[np.int64],
    widest: float,
) -> tuple[int, int] | None:
    """Return the pixel that an end is joined with, None where nothing is near enough."""
    if len(path) < 2:
        return None
    back = np.array(path[min(STEPS, len(path) - 1)], float)
    way = np.array(end, float) - back
    way /= np.hypot(*way)
    near = known.apart(end, near, round(2 * (widest + 2 * float(known.depth[end]))) + 4)
    candidates = [(int(r), int(c)) for r, c in near] + _edge(drawn.shape, end, way, widest)
    best: tuple[float, tuple[int, int]] | None = None
    for place in candidates:
        step = np.subtract(place, end).astype(float)
        distance = float(np.hypot(*step))
        if not distance or float(step @ way) < AHEAD * distance:
            continue
        rows, columns = _line(end, place)
        bare = float((~drawn[rows, columns]).mean()) * distance
        if 0 < bare <= widest + 0.5 and (best is None or distance < best[0]):
            best = distance, place
    return None if best is None else best[1]


def _line(
    start: tuple[int, int], end: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows and columns of the pixels of a straight line that touch at least at corners."""
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1])) + 1
    rows, columns = (np.rint(np.linspace(start[i], end[i], steps)).astype(int) for i in (0, 1))
    return rows, columns


def _edge(
    shape: tuple[int, ...], end: tuple[int, int], way: NDArray[np.float64], widest: float
) -> list[tuple[int, int]]:
    """Return where an end meets the edge of the field straight ahead, nothing where that is far."""
    for steps in range(1, round(widest) + 3):
        row, column = (round(end[i] + steps * way[i]) for i in (0, 1))
        inside = all(BEYOND <= v < s - BEYOND for v, s in zip((row, column), shape, strict=True))
        if not inside:
            return [(row, column)]
    return []
