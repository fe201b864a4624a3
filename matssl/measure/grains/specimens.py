"""Grain size of specimens: means over fields with their intervals, carried over to G."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matssl.measure import intervals
from matssl.measure.field import Field, averaged, clusters
from matssl.measure.grains import intercept, spread, standards
from matssl.measure.grains.intercept import Hits, Rose
from matssl.measure.grains.sizing import Bare, GrainSize
from matssl.measure.grains.spread import Sizes

# Grains that ASTM E112 wants on a field, and in all; %RA that is generally acceptable.
A_FIELD, IN_ALL, ACCURACY = 50, 200, 10.0
# Row of several specimens together.
ALL = "all specimens"


@dataclass(frozen=True)
class Sized:
    """A field with its grains.

    Attributes:
        field: the field.
        size: its grain size, gaps closed.
        open: what G comes from without closing gaps, where some were closed.
    """

    field: Field
    size: GrainSize
    open: Bare | None = None

    @property
    def mm(self) -> float | None:
        """A pixel in mm, None where it is not known."""
        return None if self.field.pixel_size is None else self.field.pixel_size * 1e-6


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % t interval.

    Attributes:
        value: of the fields.
        low: end of the interval; NaN below two fields.
        high: end of the interval.
        n: fields.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def relative(self) -> float:
        """%RA: half width over mean in per cent."""
        return 100 * (self.high - self.value) / self.value if self.value > 0 else math.nan

    def through(self, change: Callable[[float], float], falling: bool = False) -> Mean:
        """Return it on another scale: ends are carried over, never half widths.

        Args:
            change: to the other scale.
            falling: whether the low end becomes the high one.
        """
        low, high = (self.high, self.low) if falling else (self.low, self.high)
        return Mean(change(self.value), change(low), change(high), self.n)

    @property
    def length(self) -> Mean:
        """A rate per length as the mean length between."""
        return self.through(lambda rate: 1 / rate if rate > 0 else math.nan, falling=True)


def mean(values: Sequence[float], sequences: Sequence[str] = ()) -> Mean:
    """Return the mean of fields: ± t(n − 1) s/√n.

    Args:
        values: one a field.
        sequences: that each is a frame of, "" for none; a sequence counts as one field. Empty
            where all stand for themselves.
    """
    values = averaged(values, sequences) if sequences else values
    kept = [value for value in values if not math.isnan(value)]
    n = len(kept)
    if not n:
        return Mean(math.nan, math.nan, math.nan, 0)
    own = intervals.sample(kept)
    half = intervals.half_width(own.variance, own.degrees)
    # Neither grains per area nor hits per length lie below none.
    low = math.nan if math.isnan(half) else max(0.0, own.mean - half)
    return Mean(own.mean, low, own.mean + half, n)


@dataclass(frozen=True)
class Summary:
    """The grain size of a specimen, or of several; per mm and mm² where ``scaled``, else per px.

    Attributes:
        specimen: its name.
        n: fields, a sequence of frames counted as one, or specimens.
        grains: counted in all, cut ones as halves.
        smallest: the fewest grains of a field.
        density: N_A.
        hits: P_L of Heyn's lines in four directions.
        directions: mean intercept by direction in degrees.
        jeffries: N_A in circles.
        hilliard: P_L of single circles.
        abrams: P_L of three circles.
        rose: axes of the rose of intercepts.
        open_density: N_A without closing gaps.
        open_hits: P_L without closing gaps.
        sizes: of single grains, areas in mm² or px².
        spread: what they say beside their mean.
        scaled: whether lengths are in mm.
    """

    specimen: str
    n: int
    grains: float
    smallest: float
    density: Mean
    hits: Mean
    directions: dict[float, float]
    jeffries: Mean
    hilliard: Mean
    abrams: Mean
    rose: Rose
    open_density: float
    open_hits: float
    sizes: Sizes
    spread: spread.Spread
    scaled: bool

    def planimetric(self, iso: bool = False) -> Mean:
        """G of grains per area."""
        return self.density.through(standards.iso_from_density if iso else standards.from_density)

    def intercept(self) -> Mean:
        """G of Heyn's lines."""
        return self.hits.through(standards.from_hits)


def summarise(specimen: str, fields: Sequence[Sized], scaled: bool) -> Summary:
    """Return the grain size of a specimen over its fields.

    Args:
        specimen: its name.
        fields: at least one.
        scaled: whether all pixel sizes are known and lengths are in mm; else in pixels.
    """

    def unit(one: Sized) -> float:
        return one.mm if scaled and one.mm is not None else 1.0

    def per_length(hits: Callable[[GrainSize], float]) -> list[float]:
        return [hits(one.size) / unit(one) for one in fields]

    sequences = [one.field.sequence for one in fields]

    def over(values: Sequence[float]) -> Mean:
        return mean(values, sequences)

    def lines(degrees: float) -> Callable[[GrainSize], float]:
        return lambda size: _rate(size.lines[degrees])

    by_direction = {d: over(per_length(lines(d))).value for d in fields[0].size.lines}
    opened = [(one.open or one.size, unit(one)) for one in fields]
    sizes = spread.joined(
        [
            Sizes(one.size.sizes.areas * unit(one) ** 2, one.size.sizes.cut, one.size.sizes.weights)
            for one in fields
        ]
    )
    return Summary(
        specimen,
        int(clusters(sequences).max()) + 1,
        sum(one.size.rectangle.grains for one in fields),
        min(one.size.rectangle.grains for one in fields),
        over([one.size.rectangle.density / unit(one) ** 2 for one in fields]),
        over(per_length(lambda size: size.hits_per_length)),
        {d: 1 / by_direction[d] if by_direction[d] else math.nan for d in by_direction},
        over([one.size.jeffries.density / unit(one) ** 2 for one in fields]),
        over(per_length(lambda size: _rate(size.hilliard))),
        over(per_length(lambda size: _rate(size.abrams))),
        intercept.rose(by_direction),
        over([bare.rectangle.density / mm**2 for bare, mm in opened]).value,
        over([bare.hits_per_length / mm for bare, mm in opened]).value,
        sizes,
        spread.spread(sizes),
        scaled,
    )


def together(parts: Sequence[Summary]) -> Summary:
    """Return the mean over specimens: each counts once, however many fields it has."""
    first = parts[0]

    def over(pick: Callable[[Summary], float]) -> Mean:
        return mean([pick(one) for one in parts])

    rates = {d: mean([1 / one.directions[d] for one in parts]).value for d in first.directions}
    sizes = spread.joined([one.sizes for one in parts])
    return Summary(
        ALL,
        len(parts),
        sum(one.grains for one in parts),
        min(one.smallest for one in parts),
        over(lambda one: one.density.value),
        over(lambda one: one.hits.value),
        {d: 1 / rate if rate else math.nan for d, rate in rates.items()},
        over(lambda one: one.jeffries.value),
        over(lambda one: one.hilliard.value),
        over(lambda one: one.abrams.value),
        intercept.rose(rates),
        over(lambda one: one.open_density).value,
        over(lambda one: one.open_hits).value,
        sizes,
        spread.spread(sizes),
        first.scaled,
    )


def _rate(hits: Hits) -> float:
    return hits.per_length
