"""Connected regions of each class of a mask: particles, grains, pores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.measure.field import Field


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


@dataclass(frozen=True)
class FieldRegions:
    """The regions of one field.

    Attributes:
        field: where they lie.
        pixels: of the field, those of no class among them.
        regions: of all classes, class by class.
    """

    field: Field
    pixels: int
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class RegionSummary:
    """How many regions of a class a specimen has, and how large they are.

    Sizes are of the regions that lie whole in their field; None where there is nothing to say.

    Attributes:
        specimen: its name, "all" for all of them.
        kind: name of the class.
        images: fields that were looked at.
        regions: all of them, those at the edge too.
        at_edge: those that touch the edge of their field.
        per_megapixel: regions per 10^6 pixels, those at the edge as halves.
        mean_area_px: mean area in pixels.
        median_area_px: median of it.
        mean_diameter_px: of the circle of equal area, in pixels.
        median_diameter_px: median of it.
        mean_box_diagonal_px: diagonal of the bounding box, in pixels.
        median_box_diagonal_px: median of it.
        pixel_size_nm: where it is the same for all fields.
        per_mm2: regions per square millimetre.
        mean_diameter_nm: of the circle of equal area.
    """

    specimen: str
    kind: str
    images: int
    regions: int
    at_edge: int
    per_megapixel: float | None
    mean_area_px: float | None
    median_area_px: float | None
    mean_diameter_px: float | None
    median_diameter_px: float | None
    mean_box_diagonal_px: float | None
    median_box_diagonal_px: float | None
    pixel_size_nm: float | None
    per_mm2: float | None
    mean_diameter_nm: float | None


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


def summarise(
    found: Sequence[FieldRegions], names: Sequence[str], specimen: str | None = None
) -> list[RegionSummary]:
    """Return one summary a class of one specimen, or of all of them together.

    Args:
        found: of all fields.
        names: of the classes.
        specimen: the one; None for all.
    """
    own = [one for one in found if specimen is None or one.field.specimen == specimen]
    pixels = sum(one.pixels for one in own)
    sizes = {one.field.pixel_size for one in own}
    # Lengths of images of several scales are only comparable in nm.
    size = sizes.pop() if len(sizes) == 1 else None
    summaries = []
    for kind, name in enumerate(names):
        regions = [r for one in own for r in one.regions if r.kind == kind]
        whole = [region for region in regions if not region.edge]
        areas = [float(region.area) for region in whole]
        diameters = [region.diameter for region in whole]
        diagonals = [region.diagonal for region in whole]
        density = number(regions) / pixels * 1e6 if pixels else None
        mean = _mean(diameters)
        summaries.append(
            RegionSummary(
                specimen=specimen or "all",
                kind=name,
                images=len(own),
                regions=len(regions),
                at_edge=len(regions) - len(whole),
                per_megapixel=density,
                mean_area_px=_mean(areas),
                median_area_px=_median(areas),
                mean_diameter_px=mean,
                median_diameter_px=_median(diameters),
                mean_box_diagonal_px=_mean(diagonals),
                median_box_diagonal_px=_median(diagonals),
                pixel_size_nm=size,
                per_mm2=density / size**2 * 1e6 if size and density is not None else None,
                mean_diameter_nm=mean * size if size and mean is not None else None,
            )
        )
    return summaries


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
