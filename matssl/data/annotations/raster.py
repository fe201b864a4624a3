"""Drawings as masks: a pixel belongs to a shape where its centre lies inside.

Even-odd over all rings of a shape, then clipped to the picture. A centre on an outline belongs to
the shape whose inside lies to its right or below, so that shapes that share an outline share no
pixel and leave none out. An ellipse holds the centres on its outline, as ImageJ's ovals do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import strips
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data.annotations.drawing import Drawing, Ellipse, Patch, Points, Shape

# Crossings of outlines with rows that are held at once, and that one shape may have in all.
AT_ONCE, MOST = 1 << 21, 1 << 30
# Sum of squares of a centre that lies on an ellipse may come out a few ulp above 1.
ON_OUTLINE = 1e-12


@dataclass(frozen=True)
class Painted:
    """A drawing as a mask.

    Attributes:
        mask: uint8 (rows, columns): a value for every label, ``uncovered`` elsewhere.
        covered: number of pixels that some shape covers.
        claimed: number of pixels that two classes or more claim.
        overlaps: those of each two, by their labels, the one painted first in front.
        empty: shapes that hold no centre of a pixel, by label: too small, or outside.
    """

    mask: NDArray[np.uint8]
    covered: int
    claimed: int
    overlaps: Mapping[tuple[str, str], int]
    empty: Mapping[str, int]


def paint(
    drawing: Drawing,
    size: tuple[int, int],
    values: Mapping[str, int],
    overlap: str | None = None,
    uncovered: int = 0,
) -> Painted:
    """Return the mask of a drawing.

    Where two classes claim a pixel, ``overlap`` says which gets it: the ``last`` or ``first``
    drawn, the ``smallest`` or ``largest`` shape, or none (``ignore``). None paints in the drawing's
    order and counts; the caller asks, unless :attr:`Drawing.ordered`.

    Args:
        drawing: the shapes.
        size: rows and columns of the picture.
        values: of each label, 0 to 255; labels may share one.
        overlap: see above.
        uncovered: value where nothing is drawn.
    """
    mask = np.full(size, uncovered, np.uint8)
    owner = np.zeros(size, np.uint16)
    shapes = drawing.shapes
    if drawing.relative:
        shapes = tuple(_scaled(shape, size) for shape in shapes)
    labels = list(dict.fromkeys(shape.label for shape in shapes))
    if len(labels) > np.iinfo(np.uint16).max:
        raise UserError(f"{drawing.source} gives {drawing.picture} {len(labels):,} class names")
    overlaps: Counter[tuple[str, str]] = Counter()
    empty: Counter[str] = Counter()
    twice = np.zeros((0, 0), np.bool_)
    for shape in _ordered(shapes, size, overlap):
        patch = covered(shape, size)
        if not patch.pixels.any():
            empty[shape.label] += 1
            continue
        rows, columns = patch.pixels.shape
        place = np.s_[patch.row : patch.row + rows, patch.column : patch.column + columns]
        value, own, under = values[shape.label], owner[place], mask[place]
        other = patch.pixels & (own > 0) & (under != value)
        if other.any():
            twice = twice if twice.size else np.zeros(size, np.bool_)
            twice[place] |= other
            for number, pixels in enumerate(np.bincount(own[other])):
                if pixels:
                    overlaps[labels[number - 1], shape.label] += int(pixels)
        under[patch.pixels] = value
        if overlap == "ignore":
            under[other] = IGNORE
        own[patch.pixels] = labels.index(shape.label) + 1
    shared = int(np.count_nonzero(twice))
    return Painted(mask, int(np.count_nonzero(owner)), shared, overlaps, empty)


def _scaled(shape: Shape, size: tuple[int, int]) -> Shape:
    return replace(shape, rings=tuple(ring * (size[1], size[0]) for ring in shape.rings))


def _ordered(
    shapes: Sequence[Shape], size: tuple[int, int], overlap: str | None
) -> Sequence[Shape]:
    """Return shapes in the order in which they are painted, the winning ones last."""
    if overlap == "first":
        return shapes[::-1]
    if overlap in ("smallest", "largest"):
        areas = [int(np.count_nonzero(covered(shape, size).pixels)) for shape in shapes]
        order = sorted(range(len(shapes)), key=areas.__getitem__, reverse=overlap == "smallest")
        return [shapes[i] for i in order]
    return shapes


def covered(shape: Shape, size: tuple[int, int]) -> Patch:
    """Return the pixels of a picture that a shape covers, within their own box.

    Args:
        shape: rings, ellipse or patch.
        size: rows and columns of the picture.

    Raises:
        UserError: outlines that cross more rows than any drawing does.
    """
    patch = shape.later() if shape.later is not None else shape.patch
    if patch is not None:
        return _clipped(patch, size)
    if shape.ellipse is not None:
        return _of_ellipse(shape.ellipse, size)
    return _of_rings(shape.rings, size)


def _clipped(patch: Patch, size: tuple[int, int]) -> Patch:
    rows, columns = patch.pixels.shape
    top, left = max(0, -patch.row), max(0, -patch.column)
    below, right = min(rows, size[0] - patch.row), min(columns, size[1] - patch.column)
    inside = patch.pixels[top : max(top, below), left : max(left, right)]
    return Patch(max(0, patch.row), max(0, patch.column), inside)


def _within(low: Points, high: Points, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return first and last row and column (last excluded) of the pixels between two corners."""
    x0, y0 = np.clip(np.floor(low), 0, (size[1], size[0])).astype(int).tolist()
    x1, y1 = np.clip(np.ceil(high), (x0, y0), (size[1], size[0])).astype(int).tolist()
    return y0, max(y0, y1), x0, max(x0, x1)


def _of_ellipse(ellipse: Ellipse, size: tuple[int, int]) -> Patch:
    angle = np.radians(ellipse.degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    reach = np.array(
        [
            np.hypot(ellipse.rx * cos, ellipse.ry * sin),
            np.hypot(ellipse.rx * sin, ellipse.ry * cos),
        ]
    )
    centre = np.array([ellipse.x, ellipse.y])
    top, below, left, right = _within(centre - reach - 1, centre + reach + 1, size)
    inside = np.zeros((below - top, right - left), np.bool_)
    x = np.arange(left, right)[None, :] + 0.5 - ellipse.x
    for rows in strips(len(inside)):
        y = np.arange(top, below)[rows, None] + 0.5 - ellipse.y
        along, across = (x * cos + y * sin) / ellipse.rx, (y * cos - x * sin) / ellipse.ry
        inside[rows] = along**2 + across**2 <= 1 + ON_OUTLINE
    return Patch(top, left, inside)


def _of_rings(rings: Sequence[Points], size: tuple[int, int]) -> Patch:
    if not rings:
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    low = np.min([ring.min(axis=0) for ring in rings], axis=0)
    high = np.max([ring.max(axis=0) for ring in rings], axis=0)
    top, below, left, right = _within(low, high, size)
    rows, columns = below - top, right - left
    # How often outlines are crossed at the left of each pixel's centre.
    crossed = np.zeros(rows * (columns + 1), np.uint8)
    for row, x in _crossings(rings, top, below):
        place = np.clip(np.ceil(x - 0.5), left, right).astype(np.int64) - left
        cells, times = np.unique((row - top) * (columns + 1) + place, return_counts=True)
        crossed[cells] ^= (times & 1).astype(np.uint8)
    # Parity alone counts, so that a byte may overflow.
    inside = np.cumsum(crossed.reshape(rows, columns + 1), axis=1, dtype=np.uint8)[:, :columns]
    return Patch(top, left, (inside & 1).astype(np.bool_))


def _crossings(
    rings: Sequence[Points], top: int, below: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """Yield the rows whose centre lines outlines cross, and where, a part at a time."""
    start = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    # From the upper end down, whichever way it was drawn: neighbours share the very same numbers.
    swap = start[:, 1] > end[:, 1]
    start[swap], end[swap] = end[swap], start[swap]
    first = np.clip(np.ceil(start[:, 1] - 0.5), top, below).astype(np.int64)
    last = np.clip(np.ceil(end[:, 1] - 0.5), top, below).astype(np.int64)
    many = last - first
    crossing = many > 0
    start, end = start[crossing], end[crossing]
    first, many = first[crossing], many[crossing]
    ends = np.cumsum(many)
    if len(ends) and ends[-1] > MOST:
        raise UserError(f"an outline of {len(ends):,} points crosses {ends[-1]:,} rows: damaged")
    at = 0
    while at < len(many):
        done = int(ends[at - 1]) if at else 0
        stop = max(at + 1, int(np.searchsorted(ends, done + AT_ONCE, side="right")))
        edge = np.repeat(np.arange(at, stop), many[at:stop])
        row = first[edge] + np.arange(len(edge)) - (ends[edge] - many[edge] - done)
        (x0, y0), (x1, y1) = start[edge].T, end[edge].T
        yield row, x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        at = stop
