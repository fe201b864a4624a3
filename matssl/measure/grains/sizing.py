"""All that is measured of the grains of a field, in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from matssl.measure.grains import circles, intercept, planimetric, spread
from matssl.measure.grains.intercept import HEYN, ROSE, Hits, Rose
from matssl.measure.grains.network import Network
from matssl.measure.grains.planimetric import Count
from matssl.measure.grains.spread import Sizes


@dataclass(frozen=True)
class GrainSize:
    """The grains of a field by every method, lengths in pixels.

    Attributes:
        rectangle: grains by Saltykov's rule.
        jeffries: grains in the largest circle.
        lines: hits of lines by direction in degrees, those of ``HEYN`` and between.
        hilliard: hits of single circles.
        abrams: hits of three concentric circles.
        check: sum of all intercepts of the four directions over the length of the lines; 1.
        sizes: of single grains.
        shared: share of the field that was drawn as boundary and shared out.
        closed: gaps that were closed.
        fragments: parts that are too small to be grains.
    """

    rectangle: Count
    jeffries: Count
    lines: Mapping[float, Hits]
    hilliard: Hits
    abrams: Hits
    check: float
    sizes: Sizes
    shared: float
    closed: int
    fragments: int

    @property
    def heyn(self) -> dict[float, Hits]:
        """The hits in the four directions of Heyn's lines."""
        return {degrees: self.lines[degrees] for degrees in HEYN}

    @property
    def hits_per_length(self) -> float:
        """Mean of P_L over the four directions, 1/px; NaN for a field too small for a line."""
        values = [one.per_length for one in self.heyn.values()]
        return sum(values) / len(values)

    @property
    def hits(self) -> float:
        """Hits of the lines of all four directions."""
        return sum(one.count for one in self.heyn.values())

    @property
    def rose(self) -> Rose:
        """The axes of the rose of intercepts."""
        return intercept.rose({d: one.per_length for d, one in self.lines.items()})


@dataclass(frozen=True)
class Bare:
    """The two counts that G comes from, where no more is asked for.

    Attributes:
        rectangle: grains by Saltykov's rule.
        hits_per_length: mean of P_L over the four directions, 1/px.
    """

    rectangle: Count
    hits_per_length: float


def counted(network: Network, spacing: int = 1) -> Bare:
    """Return what G comes from, without circles and sizes.

    Args:
        network: the grains.
        spacing: distance of the test lines in pixels.
    """
    found = [intercept.along(network.labels, step, spacing).per_length for step in HEYN.values()]
    return Bare(planimetric.rectangle(network.labels), sum(found) / len(found))


def measured(network: Network, spacing: int = 1) -> GrainSize:
    """Return the grain size of a field by every method.

    Args:
        network: its grains.
        spacing: distance of the test lines in pixels.
    """
    labels = network.labels
    lines = {degrees: intercept.along(labels, step, spacing) for degrees, step in ROSE.items()}
    height, width = labels.shape
    fits = min(height, width) > 2
    hilliard, abrams = (
        circles.along(labels, circles.placed(height, width, sizes) if fits else [])
        for sizes in (circles.HILLIARD, circles.ABRAMS)
    )
    return GrainSize(
        planimetric.rectangle(labels),
        planimetric.circle(labels),
        lines,
        hilliard,
        abrams,
        _sum(network),
        spread.sizes(labels),
        network.shared,
        network.closed,
        network.fragments,
    )


def _sum(network: Network) -> float:
    """Return the sum of all intercepts over the length of the lines they lie on."""
    found = [intercept.pieces(network.labels, degrees)[1] for degrees in HEYN]
    lines = [intercept.along(network.labels, step).length for step in HEYN.values()]
    return sum(found) / sum(lines) if sum(lines) else math.nan
