"""Connected regions of each class of a mask: particles, grains, pores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Region:
    """A connected part of one class.

    Attributes:
        kind: class index.
        area: in pixels.
        diameter: of the circle of equal area, in pixels.
        diagonal: of the bounding box, in pixels.
        row: of the centre of mass.
        column: of the centre of mass.
        edge: whether it touches the edge of the image, so that a part of it may be missing.
    """

    kind: int
    area: int
    diameter: float
    diagonal: float
    row: float
    column: float
    edge: bool


def find_regions(
    mask: NDArray[np.uint8], num_classes: int, min_area: int = 10
) -> tuple[Region, ...]:
    """Return the regions of each class in a mask, class by class.

    Pixels that touch at a corner are connected.

    Args:
        mask: class indices (H, W); indices from ``num_classes`` on belong to no class.
        num_classes: how many classes there are.
        min_area: smaller regions are left out.
    """
    found = []
    height, width = mask.shape
    for kind in range(num_classes):
        count, _, boxes, centres = cv2.connectedComponentsWithStats(
            (mask == kind).astype(np.uint8), connectivity=8
        )
        # Number 0 is all that is not of the class.
        for (left, top, wide, high, area), (x, y) in zip(boxes[1:count], centres[1:], strict=True):
            if area < min_area:
                continue
            edge = left == 0 or top == 0 or left + wide == width or top + high == height
            diameter, diagonal = math.sqrt(4 * area / math.pi), math.hypot(wide, high)
            found.append(Region(kind, int(area), diameter, diagonal, y, x, bool(edge)))
    return tuple(found)


def number(regions: Sequence[Region]) -> float:
    """Return how many regions there are, those cut by the edge as halves (ASTM E112, planimetric).

    A region across the border of two fields is then one in the sum of both.
    """
    return sum(0.5 if region.edge else 1.0 for region in regions)
