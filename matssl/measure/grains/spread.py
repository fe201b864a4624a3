"""Sizes of single grains: their distribution, grains as large as can be, suspicion of duplex."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# ASTM E930: an outlier is 3 numbers of G coarser than the rest and these cover at most 5 %.
OUTLIER, RARE = 3.0, 0.05
# ASTM E1181: sizes over 5 numbers are a wide range (95 % of the area), two heaps 4 numbers apart
# that hold three quarters of it are bimodal.
WIDE, MOST = 5.0, 0.95
APART, TOGETHER = 4.0, 0.75
# Fewer grains show no distribution.
ENOUGH = 50
# Classes of half a number of G for the two heaps.
STEP = 0.5


@dataclass(frozen=True)
class Sizes:
    """The grains of a field, one entry each.

    Attributes:
        areas: in pixels, boundary pixels shared out, (N,).
        cut: whether the edge of the field cuts the grain, so that it is larger than what is seen.
        weights: how many grains of the specimen each stands for (Miles and Lantuéjoul): large ones
            are cut more often; 0 where it is cut.
    """

    areas: NDArray[np.float64]
    cut: NDArray[np.bool_]
    weights: NDArray[np.float64]


def sizes(labels: NDArray[np.int32]) -> Sizes:
    """Return the sizes of the grains of a field.

    Args:
        labels: number of each pixel's grain from 1 on, 0 where it counts nowhere, (H, W).
    """
    height, width = labels.shape
    if not labels.size:
        return Sizes(np.zeros(0), np.zeros(0, bool), np.zeros(0))
    areas = np.bincount(labels.ravel(), minlength=1)[1:].astype(float)
    boxes = ndimage.find_objects(labels)
    weights = np.zeros(len(areas))
    cut = np.ones(len(areas), bool)
    bare = np.pad(labels == 0, 1, constant_values=True)
    touching = np.unique(labels[ndimage.binary_dilation(bare, np.ones((3, 3)))[1:-1, 1:-1]])
    at_edge = set(touching.tolist())
    for number, box in enumerate(boxes, 1):
        if box is None or number in at_edge:
            continue
        rows, columns = (part.stop - part.start for part in box)
        cut[number - 1] = False
        room = (height - 1 - rows) * (width - 1 - columns)
        weights[number - 1] = height * width / room if room > 0 else 0.0
    return Sizes(areas, cut, weights)


def joined(parts: Sequence[Sizes]) -> Sizes:
    """Return the grains of several fields together; areas must be of one unit."""
    return Sizes(
        np.concatenate([one.areas for one in parts]),
        np.concatenate([one.cut for one in parts]),
        np.concatenate([one.weights for one in parts]),
    )


def quantile(found: Sizes, share: float) -> float:
    """Return the area that a share of the grains by number lies below; NaN without whole grains."""
    own = found.weights > 0
    if not own.any():
        return math.nan
    order = np.argsort(found.areas[own])
    areas, weights = found.areas[own][order], found.weights[own][order]
    middle = (np.cumsum(weights) - weights / 2) / weights.sum()
    return float(np.interp(share, middle, areas))


@dataclass(frozen=True)
class Spread:
    """What the distribution of grain sizes says beside its mean; G needs no scale for this.

    Attributes:
        largest: how many numbers of G the largest grain is coarser than the mean; None without
            grains. Of a cut grain only what is seen of it.
        outliers: grains that are 3 numbers or more coarser than the mean of the others.
        outlier_area: share of the area in these.
        range: numbers of G between the ends of the middle 95 % of the area; None for too few.
        peaks: numbers of G between two heaps that hold most of the area, None where there are none.
    """

    largest: float | None
    outliers: int
    outlier_area: float
    range: float | None
    peaks: float | None

    @property
    def words(self) -> list[str]:
        """What to doubt, a sentence each; nothing where the sizes are of one kind."""
        said = []
        if self.outliers and self.outlier_area <= RARE:
            grains = "grain is" if self.outliers == 1 else "grains are"
            said.append(
                f"ALA (ASTM E930): {self.outliers} {grains} 3 or more numbers of G coarser than "
                f"the others ({100 * self.outlier_area:.1f} % of the area): the mean G does not "
                "describe them, or boundaries within them are missing"
            )
        if self.peaks is not None:
            said.append(
                f"duplex suspected (ASTM E1181): two heaps of grain sizes, {self.peaks:.1f} "
                "numbers of G apart; the mean G is a size that few grains have"
            )
        elif self.range is not None and self.range >= WIDE:
            said.append(
                f"duplex suspected (ASTM E1181): wide range, 95 % of the area lies over "
                f"{self.range:.1f} numbers of G"
            )
        return said


def spread(found: Sizes) -> Spread:
    """Return whether grains are of one kind.

    Args:
        found: grains of a specimen, areas of one unit.
    """
    areas = found.areas[found.areas > 0]
    if not len(areas):
        return Spread(None, 0, 0.0, None, None)
    # Grains three numbers coarser have eight times the area of the others.
    large = areas >= 2**OUTLIER * areas.mean()
    if large.any() and not large.all():
        large = areas >= 2**OUTLIER * areas[~large].mean()
    largest = math.log2(float(areas.max() / areas[~large].mean())) if not large.all() else None
    share = float(areas[large].sum() / areas.sum())
    whole = areas[~large] if share <= RARE else areas
    if len(whole) < ENOUGH:
        return Spread(largest, int(large.sum()), share, None, None)
    coarse = np.sort(np.log2(whole))
    mass = np.cumsum(2**coarse) / (2**coarse).sum()
    low, high = np.interp([(1 - MOST) / 2, (1 + MOST) / 2], mass, coarse)
    return Spread(largest, int(large.sum()), share, float(high - low), _heaps(coarse))


def _heaps(coarse: NDArray[np.float64]) -> float | None:
    """Return how far two heaps of area lie apart; None where there are not two clear ones.

    Args:
        coarse: log2 of areas.
    """
    bins = np.arange(coarse.min() - 2 * STEP, coarse.max() + 3 * STEP, STEP)
    mass, edges = np.histogram(coarse, bins, weights=2**coarse)
    smooth = np.convolve(mass / mass.sum(), [0.25, 0.5, 0.25], "same")
    tops = [
        i
        for i in range(1, len(smooth) - 1)
        if smooth[i] >= smooth[i - 1] and smooth[i] > smooth[i + 1]
    ]
    best: float | None = None
    for i, first in enumerate(tops):
        for second in tops[i + 1 :]:
            valley = first + int(smooth[first : second + 1].argmin())
            clear = smooth[valley] < min(smooth[first], smooth[second]) / 2
            apart = float(edges[second] - edges[first])
            each = min(mass[:valley].sum(), mass[valley:].sum()) / mass.sum()
            near = np.minimum(abs(edges[:-1] - edges[first]), abs(edges[:-1] - edges[second])) <= 2
            both = mass[near].sum() / mass.sum() >= TOGETHER
            if clear and both and apart >= APART and each >= RARE:
                best = max(best or 0.0, apart)
    return best
