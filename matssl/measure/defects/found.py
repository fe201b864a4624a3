"""What an algorithm finds on a mask: pixels, outlines and sizes of each defect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.matching import SAME, greedy

# Violet of outlines and green of the truth, in B, G, R.
OUTLINE, TRUTH = (200, 0, 200), (0, 255, 0)
# Circles and their centres are drawn with so many bits behind the point.
SHIFT = 4
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Shape:
    """The outline of a defect: a polygon, a circle or a box; whole pixels have whole centres.

    Attributes:
        points: corners of the polygon, (N, 2) as x, y; of a box the first and the last pixel.
        radius: of a circle about the only point; 0 for others.
        box: whether it is a box.
    """

    points: Floats
    radius: float = 0.0
    box: bool = False

    def fill(self, canvas: NDArray[np.uint8], colour: int | tuple[int, int, int]) -> None:
        """Draw all that the outline holds."""
        if self.radius:
            self._circle(canvas, colour, -1)
        elif self.box:
            (left, top), (right, bottom) = np.rint(self.points).astype(int)
            canvas[top : bottom + 1, left : right + 1] = colour
        else:
            cv2.fillPoly(canvas, [np.rint(self.points).astype(np.int32)], colour)

    def draw(self, canvas: NDArray[np.uint8], colour: tuple[int, int, int], thick: int) -> None:
        """Draw the outline."""
        if self.radius:
            self._circle(canvas, colour, thick)
        elif self.box:
            first, last = np.rint(self.points).astype(int).tolist()
            cv2.rectangle(canvas, first, last, colour, thick)
        else:
            points = np.rint(self.points).astype(np.int32)
            cv2.polylines(canvas, [points], True, colour, thick)

    def _circle(
        self, canvas: NDArray[np.uint8], colour: int | tuple[int, int, int], thick: int
    ) -> None:
        scale = 1 << SHIFT
        x, y = np.rint(self.points[0] * scale).astype(int).tolist()
        radius = max(1, round(self.radius * scale))
        cv2.circle(canvas, (x, y), radius, colour, thick, cv2.LINE_8, SHIFT)


@dataclass(frozen=True)
class Defects:
    """The defects of a field; lengths in pixels.

    Attributes:
        size: diameter or length of each, (N,).
        labels: their pixels, int32 (H, W), numbers 1 to N; of circles that no mask holds (found on
            grey levels) the circles themselves.
        shapes: their outlines.
        steps: how many parts were looked at, left out and kept, by what was done.
    """

    size: Floats
    labels: NDArray[np.int32]
    shapes: tuple[Shape, ...]
    steps: Mapping[str, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many."""
        return len(self.size)

    def covered(self) -> Mask:
        """Return the union of the drawn outlines, (H, W)."""
        canvas = np.zeros(self.labels.shape, np.uint8)
        for shape in self.shapes:
            shape.fill(canvas, 1)
        return canvas > 0


def union_iou(first: Mask, second: Mask) -> float:
    """Return intersection over union of two masks; NaN where both are empty.

    Of unions: two defects that were taken for one do not show in it.
    """
    union = int(np.count_nonzero(first | second))
    return int(np.count_nonzero(first & second)) / union if union else float("nan")


@dataclass(frozen=True)
class Histogram:
    """Sizes in bins of equal width.

    Attributes:
        edges: of the bins, (B + 1,).
        counts: of each bin, (B,); the last one holds its upper edge.
        below: sizes below the first bin.
        above: sizes above the last one.
    """

    edges: Floats
    counts: NDArray[np.int64]
    below: int
    above: int

    def distance(self, other: Histogram) -> int:
        """Return the L1 distance of the counts to another, with those below and above."""
        inside = int(np.abs(self.counts - other.counts).sum())
        return inside + abs(self.below - other.below) + abs(self.above - other.above)


def histogram(sizes: Sequence[float], start: float, stop: float, bins: int) -> Histogram:
    """Return how many sizes lie in each of so many bins from start to stop, and beyond."""
    values = np.asarray(sizes, float)
    edges = np.linspace(start, stop, bins + 1)
    counts, _ = np.histogram(values, edges)
    below, above = int(np.count_nonzero(values < start)), int(np.count_nonzero(values > stop))
    return Histogram(edges, counts.astype(np.int64), below, above)


@dataclass(frozen=True)
class Matched:
    """Defects of a prediction against those of the truth in one field.

    Attributes:
        true: how many there are.
        predicted: how many were found.
        pairs: numbers (from 0) of a true and a predicted defect that are the same, (K, 2).
    """

    true: int
    predicted: int
    pairs: NDArray[np.int64]


def matched(truth: Defects, prediction: Defects, least: float = SAME) -> Matched:
    """Return which defects are the same: intersection over union at least one half.

    Pairs are taken greedily, the best first, each defect once.

    Args:
        truth: of the annotation.
        prediction: of the same field.
        least: intersection over union from which on they are the same.
    """
    true, own = (
        np.bincount(one.labels.ravel(), minlength=one.count + 1)[1:].astype(np.int64)
        for one in (truth, prediction)
    )
    pairs, _ = greedy(truth.labels, prediction.labels, true, own, least)
    return Matched(truth.count, prediction.count, pairs)
