"""Area fractions (ASTM E1245): of each specimen over its fields, and over specimens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from matssl.measure import intervals
from matssl.measure.correlation import Correlated
from matssl.measure.field import Field, averaged
from matssl.measure.intervals import Fraction, Sample


@dataclass(frozen=True)
class Errors:
    """Predicted minus true area fraction of a class, over images.

    Attributes:
        mean: of the differences.
        mean_absolute: of their sizes.
    """

    mean: float
    mean_absolute: float


@dataclass(frozen=True)
class Estimate:
    """An area fraction, and what it is a mean of.

    Attributes:
        fraction: mean, spread and interval.
        sample: the mean and its variance, for corrections and differences.
        over: of what the fraction is a mean, and its interval speaks: fields of one specimen, or
            specimens of several; correlation where fields are too few and the interval comes from
            within them.
        specimens: how many.
        fields: how many, of all of them.
        refusal: why there is no interval, in words; "" where there is one.
    """

    fraction: Fraction
    sample: Sample
    over: Literal["fields", "specimens", "correlation"]
    specimens: int
    fields: int
    refusal: str = ""

    def stored(self) -> dict[str, object]:
        """Return it as plain values, for a table or a JSON file."""
        own: dict[str, object] = {
            f.name: getattr(self.fraction, f.name) for f in fields(Fraction) if f.name != "n"
        }
        return own | {"specimens": self.specimens, "fields": self.fields, "over": self.over}


def of_specimen(values: Sequence[float], correlated: Sequence[Correlated] = ()) -> Estimate:
    """Return the area fraction of one specimen over its fields.

    From MIN_SHARES fields on by their spread. Of fewer nothing tells the spread: the interval comes
    from the correlation within them, where it is given and each is large enough for it, and from
    the spread where that is larger.

    Args:
        values: fraction of each field, at least one.
        correlated: what each field tells of its own error, in the same order; empty for unknown.
    """
    n, found = len(values), intervals.fraction(values)
    if n >= intervals.MIN_SHARES:
        return Estimate(found, _spread(values, found), "fields", 1, n)
    few = f"{n} of at least {intervals.MIN_SHARES} fields"
    if len(correlated) != n:
        unknown = Sample(found.mean, math.nan, math.nan, n)
        return Estimate(found, unknown, "fields", 1, n, few)
    refused = next((one.refusal for one in correlated if one.refusal), "")
    if refused:
        unknown = Sample(found.mean, math.nan, math.nan, n)
        return Estimate(found, unknown, "fields", 1, n, refused if n == 1 else f"{few}; {refused}")
    variance = sum(one.variance for one in correlated) / n**2
    degrees = sum(one.degrees for one in correlated)
    spread = intervals.sample(values)
    if n > 1 and spread.variance > variance:
        variance, degrees = spread.variance, spread.degrees
    half = intervals.half_width(variance, degrees)
    ends = intervals.of_share(found.mean, half)
    own = replace(
        found,
        half_width=half,
        low=ends.low,
        high=ends.high,
        scale=ends.scale,
        relative_accuracy=100 * half / found.mean,
    )
    return Estimate(own, Sample(found.mean, variance, degrees, n), "correlation", 1, n)


def of_specimens(means: Sequence[float], count: int) -> Estimate:
    """Return the mean over specimens.

    Args:
        means: of each specimen.
        count: fields of all of them.
    """
    n, found = len(means), intervals.fraction(means, intervals.MIN_FIELDS)
    own = _spread(means, found)
    if n >= intervals.MIN_FIELDS:
        return Estimate(found, own, "specimens", n, count)
    few = f"{n} of at least {intervals.MIN_FIELDS} specimens"
    return Estimate(found, replace(own, variance=math.nan), "specimens", n, count, few)


def _spread(values: Sequence[float], found: Fraction) -> Sample:
    """Return values as a sample; that all have nothing, or nothing else, is no spread of none."""
    own = intervals.sample(values)
    return replace(own, variance=math.nan) if found.scale == "rule of three" else own


def by_specimen(fields: Sequence[Field], kind: int) -> dict[str, list[float]]:
    """Return the fractions of a class in the fields of each specimen; empty fields have none.

    A sequence has one, the mean of its frames.

    Args:
        fields: in the order in which specimens come.
        kind: index of the class.
    """
    found = {}
    for name in dict.fromkeys(field.specimen for field in fields):
        own = [field for field in fields if field.specimen == name]
        shares = [float(field.fractions[kind]) for field in own]
        values = averaged(shares, [field.sequence for field in own])
        if known := [share for share in values if not math.isnan(share)]:
            found[name] = known
    return found


def over_specimens(fields: Sequence[Field]) -> list[Estimate]:
    """Return the area fraction of each class: over specimens, or over the fields of a single one.

    Images of one specimen are no independent fields of a material: of several specimens the mean of
    each counts once.

    Args:
        fields: of all specimens.
    """
    found = []
    for kind in range(len(fields[0].areas)):
        own = by_specimen(fields, kind)
        count = sum(map(len, own.values()))
        if len(own) == 1:
            found.append(of_specimen(next(iter(own.values()))))
        elif own:
            found.append(of_specimens([float(np.mean(one)) for one in own.values()], count))
        else:
            nothing = replace(intervals.fraction([math.nan]), n=0)
            unknown = Sample(math.nan, math.nan, math.nan, 0)
            found.append(Estimate(nothing, unknown, "fields", 0, 0, "no pixel counts"))
    return found


def errors(predicted: Sequence[Field], truth: Sequence[Field]) -> list[Errors]:
    """Return how far predicted fractions of each class lie off the true ones.

    Args:
        predicted: one per image.
        truth: of the same images in the same order.
    """
    found = []
    for own, true in zip(_columns(predicted), _columns(truth), strict=True):
        difference = np.array(own) - np.array(true)
        absolute = float(np.nanmean(np.abs(difference)))
        found.append(Errors(float(np.nanmean(difference)), absolute))
    return found


def _columns(fields: Sequence[Field]) -> list[list[float]]:
    """Return the fractions of each class, one list a class with one entry a field."""
    return np.stack([field.fractions for field in fields]).T.tolist()
