"""The scale bar drawn in an information bar or on the specimen: how many pixels long it is.

As the makers draw it: a filled bar, a line with a tick at each end (its middle may be left free
for the length), or a row of ticks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.data.readers.bar import INK, bar_height, levels

# Shortest scale bar in pixels; longest in shares of the width.
SHORTEST, LONGEST = 12, 0.75
# Ticks of a row of them: how many at least, and how uneven their steps may be, in pixels.
FEWEST_TICKS, UNEVEN = 5, 1.6
# Writing on the specimen has the first or last levels of 255.
EXTREME = 4


@dataclass(frozen=True)
class ScaleBar:
    """A scale bar in pixels of its picture.

    Attributes:
        left: its first column.
        right: the column behind its last one.
        row: its middle row.
        in_bar: whether it lies in the information bar.
    """

    left: float
    right: float
    row: float
    in_bar: bool

    @property
    def pixels(self) -> float:
        """Its length."""
        return self.right - self.left


def find(pixels: Array) -> ScaleBar | None:
    """Return the scale bar of a picture, None where none is told from other writing.

    Args:
        pixels: (H, W) or (H, W, 3) of any type.
    """
    rows = bar_height(pixels)
    if rows:
        # Without subsampled columns: each pixel counts.
        bar = levels(pixels, rows, step=1)
        paper = int(np.bincount(bar.ravel(), minlength=256).argmax())
        away = np.abs(bar.astype(np.int16) - paper)
        strongest = float(np.percentile(away, 99.9))
        ink = away >= max(0.75 * INK, 0.5 * strongest)
        return _longest(ink, len(pixels) - rows, True)
    whole = levels(pixels, len(pixels), step=1)
    found = [_longest(side, 0, False) for side in (whole >= 255 - EXTREME, whole <= EXTREME)]
    return max((one for one in found if one), key=lambda one: one.pixels, default=None)


def _longest(ink: NDArray[np.bool_], top: int, in_bar: bool) -> ScaleBar | None:
    """Return the longest thing in a mask of ink that is drawn as scale bars are."""
    import cv2

    count, _, boxes, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=8)
    width = ink.shape[1]
    found: list[tuple[float, float, float]] = []
    ends: list[tuple[int, int, int, bool]] = []
    ticks: list[tuple[float, int]] = []
    for left, upper, wide, high, area in boxes[1:count]:
        part = ink[upper : upper + high, left : left + wide]
        if high >= 4 and wide <= 3 and area >= 0.8 * wide * high:
            ticks.append((left + wide / 2, upper))
        # What reaches the edge of the information bar is its frame.
        edge = in_bar and (upper == 0 or upper + high == len(ink))
        if edge or not SHORTEST // 2 <= wide <= LONGEST * width:
            continue
        run, row = _run(part)
        thick = int((part.sum(axis=1) >= 0.9 * wide).sum())
        # A frame has a line above and one below, and is higher than a tick.
        slim = wide >= 4 * thick and high <= max(0.6 * wide, 4 * thick)
        filled = area >= 0.9 * wide * high and (in_bar or thick >= 2)
        line = in_bar and thick and area <= 0.6 * wide * high + 2 * high + thick * wide
        straight = run >= 0.97 * wide and not _framing(part, thick)
        half = _half(part) if straight and area <= wide * thick + 3 * high else 0
        if half:
            ends.append((int(left), int(left + wide), int(upper + row), half < 0))
        elif straight and wide >= SHORTEST and slim and (filled or line):
            found.append((float(left), float(left + wide), upper + row))
    found += _parted(ends)
    if not found and in_bar:
        found = _ticked(ticks)
    longest = max(found, key=lambda one: one[1] - one[0], default=None)
    return ScaleBar(longest[0], longest[1], top + longest[2], in_bar) if longest else None


def _run(part: NDArray[np.bool_]) -> tuple[int, float]:
    """Return length and row of the longest run of ink in a row."""
    best, rows = 0, [0]
    for number, row in enumerate(part):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        lengths = edges[1::2] - edges[::2]
        if not len(lengths) or lengths.max() < best:
            continue
        if lengths.max() > best:
            best, rows = int(lengths.max()), []
        rows.append(number)
    return best, float(np.mean(rows))


def _framing(part: NDArray[np.bool_], thick: int) -> bool:
    """Return whether a component goes around something: two lines with a gap between them."""
    full = np.flatnonzero(part.mean(axis=1) >= 0.9)
    return bool(len(full) > 1 and full[-1] - full[0] + 1 > thick)


def _half(part: NDArray[np.bool_]) -> int:
    """Return -1 for a line with a tick at its left end alone, 1 at its right, 0 for neither."""
    high, wide = part.shape
    first, last = int(part[:, 0].sum()), int(part[:, -1].sum())
    if not 5 <= high <= wide / 1.5 or max(first, last) < high or 2 * min(first, last) >= high:
        return 0
    return -1 if first == high else 1


def _parted(ends: list[tuple[int, int, int, bool]]) -> list[tuple[float, float, float]]:
    """Return lines whose middle is left free: a left and a right end in one row."""
    return [
        (float(one[0]), float(other[1]), float(one[2]))
        for one in ends
        for other in ends
        if one[3]
        and not other[3]
        and one[1] < other[0]
        and abs(one[2] - other[2]) <= 1
        and abs((one[1] - one[0]) - (other[1] - other[0])) <= 3
    ]


def _ticked(ticks: list[tuple[float, int]]) -> list[tuple[float, float, float]]:
    """Return rows of ticks at even steps; their length goes from the first to the last."""
    found = []
    for upper in {upper for _, upper in ticks}:
        places = np.sort([place for place, other in ticks if other == upper])
        if len(places) < FEWEST_TICKS:
            continue
        steps = np.diff(places)
        if np.abs(steps - np.median(steps)).max() <= UNEVEN and np.median(steps) >= 3:
            found.append((float(places[0]), float(places[-1]), float(upper)))
    return found
