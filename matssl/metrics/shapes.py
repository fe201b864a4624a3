"""Whether a class of masks is made of objects: many parts, apart from each other, compact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.metrics.matching import parts

# Of each mask the middle, up to this side, tells what its classes are like.
SIDE = 2048
# Parts in all masks together, and a mask that has the class, at least.
MANY, EACH = 10, 3
# Share of a class that the largest parts of all masks have at most.
LARGEST = 0.5
# Area over that of the ellipse of the same second moments, weighted by area, at least: 1 for
# ellipses however long, 0.95 for squares, far less for nets and branches.
COMPACT = 0.7


@dataclass(frozen=True)
class Shape:
    """What the parts of a class are like in one mask or in several.

    Attributes:
        parts: how many.
        masks: in which there are any.
        area: of all parts in pixels.
        largest: of the largest part of each mask.
        filled: areas times compactness.
    """

    parts: int = 0
    masks: int = 0
    area: int = 0
    largest: int = 0
    filled: float = 0.0

    def __add__(self, other: Shape) -> Shape:
        """Return both together."""
        return Shape(
            self.parts + other.parts,
            self.masks + other.masks,
            self.area + other.area,
            self.largest + other.largest,
            self.filled + other.filled,
        )

    @property
    def objects(self) -> bool:
        """Whether these are objects."""
        return (
            self.parts >= max(MANY, EACH * self.masks)
            and self.largest <= LARGEST * self.area
            and self.filled >= COMPACT * self.area
        )


def shapes(mask: NDArray[np.uint8], num_classes: int) -> tuple[Shape, ...]:
    """Return what each class of a mask is like.

    Args:
        mask: class indices, uint8 (H, W); 255 counts for nothing.
        num_classes: C.
    """
    top, left = (max(0, (side - SIDE) // 2) for side in mask.shape)
    middle = mask[top : top + SIDE, left : left + SIDE]
    return tuple(_shape((middle == kind).view(np.uint8)) for kind in range(num_classes))


def together(masks: Sequence[tuple[Shape, ...]]) -> tuple[Shape, ...]:
    """Return what each class of several masks is like."""
    return tuple(sum(of_class, Shape()) for of_class in zip(*masks, strict=True))


def _shape(own: NDArray[np.uint8]) -> Shape:
    labels, areas, _, _ = parts(own)
    if not len(areas):
        return Shape()
    area, largest = int(areas.sum()), int(areas.max())
    filled = 0.0
    if largest <= LARGEST * area:
        filled = float((areas * np.minimum(1, _compactness(labels, areas))).sum())
    return Shape(len(areas), 1, area, largest, filled)


def _compactness(labels: NDArray[np.int32], areas: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return area over 4 pi sqrt(det of the second moments) of each part, float64 (n,).

    A pixel is a square, not a point: 1/12 is added to both variances.
    """
    y, x = np.nonzero(labels)
    of = labels[y, x] - 1
    count = len(areas)

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(of, values, count) / areas

    dx, dy = x - mean(x.astype(float))[of], y - mean(y.astype(float))[of]
    xx, yy, xy = mean(dx * dx) + 1 / 12, mean(dy * dy) + 1 / 12, mean(dx * dy)
    result: NDArray[np.float64] = areas / (4 * np.pi * np.sqrt(xx * yy - xy * xy))
    return result
