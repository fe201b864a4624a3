"""What a few images say about others: the only intervals, with images or specimens as sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core import rng

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom.
T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
# Fewer fields or specimens tell nothing about their spread (ASTM E562 wants 30 fields).
MIN_FIELDS = 5


@dataclass(frozen=True)
class Fraction:
    """A phase fraction over fields, after ASTM E562.

    Attributes:
        mean: of the fields.
        std: of the fields, with n - 1; NaN for one field.
        half_width: of the 95 % interval; NaN below MIN_FIELDS fields.
        relative_accuracy: half width over mean in percent.
        fields: how many images.
    """

    mean: float
    std: float
    half_width: float
    relative_accuracy: float
    fields: int


def student_t(degrees: int) -> float:
    """Return the two-sided 95 % point of Student's t."""
    if degrees < 1:
        return math.nan
    if degrees <= len(T95):
        return T95[degrees - 1]
    # Cornish-Fisher about the normal point; error below 1e-3 from 31 on.
    z = 1.959964
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def phase_fraction(values: Sequence[float]) -> Fraction:
    """Return mean and 95 % interval of a fraction measured on several fields.

    Args:
        values: one fraction per image, 0 to 1.
    """
    n = len(values)
    average = float(np.mean(values)) if n else math.nan
    std = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = student_t(n - 1) * std / math.sqrt(n) if n >= MIN_FIELDS else math.nan
    relative = 100 * half / average if average > 0 else math.nan
    return Fraction(average, std, half, relative, n)


@dataclass(frozen=True)
class Mean:
    """A mean over fields.

    Attributes:
        mean: of the fields.
        std: of the fields, with n - 1; NaN for one field.
        half_width: of the 95 % interval by Student's t; NaN below MIN_FIELDS fields.
        fields: how many.
    """

    mean: float
    std: float
    half_width: float
    fields: int


def mean_of_fields(values: Sequence[float]) -> Mean:
    """Return mean and 95 % interval of a length measured on several fields.

    Args:
        values: one per field, in any unit.
    """
    n = len(values)
    average = float(np.mean(values)) if n else math.nan
    std = float(np.std(values, ddof=1)) if n > 1 else math.nan
    half = student_t(n - 1) * std / math.sqrt(n) if n >= MIN_FIELDS else math.nan
    return Mean(average, std, half, n)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean of second minus first and the half width of its 95 % t interval.

    Args:
        first: one score per seed.
        second: scores of the same seeds in the same order.

    Returns:
        The half width is NaN with a single pair, of whose spread nothing is known.
    """
    gains = np.subtract(second, first)
    half = math.nan
    if len(gains) > 1:
        half = student_t(len(gains) - 1) * float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    return float(np.mean(gains)), half


def bootstrap(
    counts: Sequence[NDArray[np.int64]],
    groups: Sequence[str],
    score: Callable[[NDArray[np.int64]], float],
    resamples: int,
    seed: int,
) -> tuple[float, float] | None:
    """Return the 95 % percentile interval of a pooled score.

    Whole groups are drawn with replacement, since images of one specimen are no independent
    samples; each image is its own group where all groups differ.

    Args:
        counts: confusion matrix of each image.
        groups: group of each image.
        score: of the summed counts.
        resamples: how many draws.
        seed: of the draws.

    Returns:
        Lower and upper end; None below MIN_FIELDS groups, which tell nothing about their spread.
    """
    names = sorted(set(groups))
    if len(names) < MIN_FIELDS or resamples < 1:
        return None
    sums = np.stack(
        [np.sum([c for c, g in zip(counts, groups, strict=True) if g == n], axis=0) for n in names]
    )
    generator = rng.generator(seed, 0, 0, stream=rng.SUBSETS)
    drawn = generator.integers(len(names), size=(resamples, len(names)))
    values = np.array([score(sums[row].sum(axis=0)) for row in drawn])
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def redrawn(
    fields: Sequence[int],
    statistics: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    resamples: int = 400,
    seed: int = 0,
) -> NDArray[np.float64] | None:
    """Return 95 % intervals of positive statistics over the fields of specimens, float64 (2, K).

    Specimens are drawn with replacement, and in each of them its fields (of one specimen the fields
    alone). The bootstrap gives the spread of the logarithm; the interval is the value times and
    over exp(t s sqrt(n / (n - 1))) with Student's t, since the percentiles of a bootstrap of few
    are too narrow (Hesterberg 2015, doi 10.1080/00031305.2015.1089789).

    Args:
        fields: how many fields each specimen has; their fields follow each other.
        statistics: of the fields when each is drawn so many times, int64 (F,): float64 (K,).
        resamples: how many draws.
        seed: of the draws.

    Returns:
        None below MIN_FIELDS specimens, or of one specimen fields; NaN where a statistic is not
        positive, or has no spread.
    """
    number = len(fields) if len(fields) > 1 else sum(fields)
    if number < MIN_FIELDS:
        return None
    generator = rng.generator(seed, 0, 0, stream=rng.SUBSETS)
    first = np.concatenate([[0], np.cumsum(fields)])
    found = []
    for _ in range(resamples):
        drawn = np.zeros(first[-1], np.int64)
        for specimen in generator.integers(len(fields), size=len(fields)).tolist():
            own = generator.integers(fields[specimen], size=fields[specimen])
            np.add.at(drawn, first[specimen] + own, 1)
        found.append(statistics(drawn))
    value = statistics(np.ones(first[-1], np.int64))
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.stack(found))
        logs[~np.isfinite(logs)] = np.nan
        known = np.count_nonzero(np.isfinite(logs), axis=0) > resamples / 2
        middle = np.nansum(logs, axis=0) / np.maximum(np.isfinite(logs).sum(axis=0), 1)
        square = np.nansum(np.square(logs - middle), axis=0)
        spread = np.sqrt(square / np.maximum(np.isfinite(logs).sum(axis=0) - 1, 1))
        factor = np.exp(student_t(number - 1) * spread * math.sqrt(number / (number - 1)))
        ends = np.stack([value / factor, value * factor])
    ends[:, ~known | ~(value > 0) | (spread < 1e-12)] = np.nan
    return ends
