"""Distributions of sizes: mean, spread and percentiles by number and by area, and their classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PERCENT = (10.0, 50.0, 90.0)
# Below this ratio of D90 and D10 a linear axis shows a distribution best.
WIDE = 4.0
MOST_CLASSES, FEWEST_CLASSES = 40, 6


@dataclass(frozen=True)
class Sizes:
    """A distribution of diameters.

    Attributes:
        mean: of the diameters.
        deviation: standard deviation of them, weights taken as frequencies.
        d10: 10 % are smaller.
        d50: the median.
        d90: 90 % are smaller.
    """

    mean: float
    deviation: float
    d10: float
    d50: float
    d90: float


@dataclass(frozen=True)
class Classes:
    """A distribution in classes of diameter.

    Attributes:
        edges: (K + 1,) of the classes.
        objects: how many of the measured ones lie in each, (K,).
        by_number: share of each class by number, (K,), sums to 1.
        by_area: share by area.
    """

    edges: Floats
    objects: NDArray[np.int64]
    by_number: Floats
    by_area: Floats


def sizes(diameter: Floats, weight: Floats) -> Sizes | None:
    """Return the distribution of diameters; None where no weight is positive.

    Percentiles lie on the straight lines between the middles of the steps of the cumulative curve
    (Hazen), so that those of equal weights are the usual ones.

    Args:
        diameter: (N,).
        weight: how many each stands for, or the area of these, (N,).
    """
    own = weight > 0
    if not own.any():
        return None
    order = np.argsort(diameter[own], kind="stable")
    values = _statistics(diameter[own][order], weight[own][order])
    return Sizes(*values.tolist())


def _statistics(diameter: Floats, weight: Floats) -> Floats:
    """Return mean, deviation and percentiles of sorted diameters, float64 (5,)."""
    total = weight.sum()
    if total <= 0:
        return np.full(5, np.nan)
    mean = diameter @ weight / total
    number = np.count_nonzero(weight)
    spread = np.square(diameter - mean) @ weight / total
    deviation = math.sqrt(spread * number / (number - 1)) if number > 1 else math.nan
    # What is left of equal sizes is rounding.
    deviation = 0.0 if deviation < 1e-9 * mean else deviation
    middle = (np.cumsum(weight) - weight / 2) / total
    inside = weight > 0
    found = np.interp(np.array(PERCENT) / 100, middle[inside], diameter[inside])
    return np.array([mean, deviation, *found])


class Resampled:
    """What is said of objects where fields are drawn: :func:`matssl.measure.intervals.redrawn`.

    Sorts the objects once, so that each draw costs sums alone.
    """

    def __init__(
        self,
        diameter: Sequence[Floats],
        weight: Sequence[Floats],
        number: Sequence[float],
        covered: Sequence[float],
        area: Sequence[float],
    ) -> None:
        """Keep the objects of F fields.

        Args:
            diameter: of the objects of each field.
            weight: of these.
            number: of objects of each field by the half rule.
            covered: area of the objects of each field.
            area: of each field, in the square of the diameters' unit.
        """
        self.number, self.covered = np.asarray(number, float), np.asarray(covered, float)
        self.area = np.asarray(area, float)
        lengths = [len(own) for own in diameter]
        together = np.concatenate([*diameter, np.zeros(0)])
        weights = np.concatenate([*weight, np.zeros(0)])
        fields = np.repeat(np.arange(len(lengths)), lengths)
        own = weights > 0
        order = np.argsort(together[own], kind="stable")
        self.diameter = together[own][order]
        self.weight = weights[own][order]
        self.field = fields[own][order]

    def __call__(self, drawn: NDArray[np.int64]) -> Floats:
        """Return objects per area, their share of it, and sizes by number and by area, (12,).

        Args:
            drawn: how often each field is drawn, (F,).
        """
        area = drawn @ self.area
        with np.errstate(divide="ignore", invalid="ignore"):
            density = [drawn @ self.number / area, drawn @ self.covered / area]
        weight = self.weight * drawn[self.field].astype(np.float64)
        by_area = weight * self.diameter**2
        return np.concatenate(
            [density, _statistics(self.diameter, weight), _statistics(self.diameter, by_area)]
        )


def logarithmic(diameter: Floats, weight: Floats) -> bool:
    """Return whether a logarithmic axis shows a distribution best."""
    found = sizes(diameter, weight)
    return found is not None and found.d10 > 0 and found.d90 > WIDE * found.d10


def class_edges(diameter: Floats, weight: Floats, log: bool) -> Floats:
    """Return the edges of classes that suit the number of objects, (K + 1,).

    As many as twice the cube root of their number (Rice), within bounds; linear ones begin at a
    round number and are round steps wide.

    Args:
        diameter: (N,).
        weight: those of 0 do not count.
        log: whether classes are equal steps of the logarithm.
    """
    own = diameter[weight > 0]
    if not len(own):
        return np.zeros(0)
    number = int(np.clip(round(2 * len(own) ** (1 / 3)), FEWEST_CLASSES, MOST_CLASSES))
    low, high = float(own.min()), float(own.max())
    if log:
        return np.geomspace(low * (1 - 1e-9), max(high, low * 1.01) * (1 + 1e-9), number + 1)
    step = max(high - low, 0.01 * high) / number
    power = 10.0 ** math.floor(math.log10(step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step)
    first, last = math.floor(low / step), math.floor(high / step) + 1
    return step * np.arange(first, last + 1, dtype=np.float64)


def classes(diameter: Floats, weight: Floats, edges: Floats) -> Classes | None:
    """Return a distribution in classes; None where no weight is positive.

    Args:
        diameter: (N,).
        weight: how many each stands for.
        edges: of the classes, which hold every diameter of positive weight.
    """
    own = weight > 0
    if not own.any():
        return None
    place = np.clip(np.searchsorted(edges, diameter[own], "right") - 1, 0, len(edges) - 2)
    count = len(edges) - 1
    objects = np.bincount(place, minlength=count)
    by_number = np.bincount(place, weight[own], count)
    by_area = np.bincount(place, weight[own] * diameter[own] ** 2, count)
    return Classes(edges, objects, by_number / by_number.sum(), by_area / by_area.sum())
