"""What a few fields say about the rest: the only intervals, with fields or specimens as sample.

All are two-sided and of 95 %. Nothing here leaves [0, 1] where a share cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from matssl.core import rng

# Fewer specimens, or fields of what may be skewed, are no sample of their spread; 30 are wanted.
MIN_FIELDS = 5
# Fewer area fractions of fields of one specimen; coverage from here on: benchmarks/RESULTS.md.
MIN_SHARES = 4
# %RA that ASTM E562 and E1245 want.
WANTED_ACCURACY = 10.0
# Below and above these shares an interval is symmetric in the logit.
LOW_SHARE, HIGH_SHARE = 0.05, 0.95

Scale = Literal["t", "logit", "rule of three", "none"]


@dataclass(frozen=True)
class Sample:
    """A mean and what is known of its error.

    Attributes:
        mean: of n values, or one value.
        variance: of the mean.
        degrees: of freedom of the variance.
        n: values.
    """

    mean: float
    variance: float
    degrees: float
    n: int


@dataclass(frozen=True)
class Interval:
    """Where a value lies with 95 % confidence.

    Attributes:
        low: lower end; NaN where there is no interval.
        high: upper end.
        half_width: of the symmetric interval, from which the ends come; NaN where there is none.
        scale: t where the ends lie half a width off the value, logit where this is so in the logit,
            rule of three where all fields have nothing or nothing else; none without an interval.
    """

    low: float
    high: float
    half_width: float
    scale: Scale


NONE = Interval(math.nan, math.nan, math.nan, "none")


@dataclass(frozen=True)
class Fraction:
    """An area fraction over n fields or over n specimens (ASTM E1245).

    Attributes:
        mean: of the values.
        std: of the values, with n - 1; NaN for one value.
        half_width: t s / sqrt(n); NaN below MIN_SHARES fields or MIN_FIELDS specimens.
        low: lower end of the interval; NaN where there is none.
        high: upper end of it.
        scale: see :class:`Interval`.
        relative_accuracy: %RA, half width over mean in per cent; NaN where there is none.
        n: values.
        needed: values for a %RA of 10 with this spread, in all; None where nothing tells.
    """

    mean: float
    std: float
    half_width: float
    low: float
    high: float
    scale: Scale
    relative_accuracy: float
    n: int
    needed: int | None


@dataclass(frozen=True)
class Difference:
    """Second minus first.

    Attributes:
        value: the difference.
        half_width: of its interval (Welch); NaN where either side has no spread to go by.
        degrees: of freedom.
    """

    value: float
    half_width: float
    degrees: float

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.value + self.half_width

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def student_t(degrees: float) -> float:
    """Return the two-sided 95 % point of Student's t; NaN below one degree of freedom.

    Args:
        degrees: of freedom, from Welch's equation no whole number.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975)) if degrees >= 1 else math.nan


def sample(values: Sequence[float]) -> Sample:
    """Return mean, variance of the mean and degrees of freedom of values; NaN from fewer than two.

    Args:
        values: at least one.
    """
    n = len(values)
    variance = float(np.var(values, ddof=1)) / n if n > 1 else math.nan
    return Sample(float(np.mean(values)), variance, n - 1.0, n)


def combined(parts: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the sum of variances and its degrees of freedom (Welch and Satterthwaite).

    Args:
        parts: (variance, degrees of freedom) of independent parts.

    Returns:
        V = sum of v_i, and V^2 / sum of v_i^2 / d_i, at least the smallest d_i.
    """
    total = sum(variance for variance, _ in parts)
    smallest = min(degrees for _, degrees in parts)
    below = sum(variance**2 / degrees for variance, degrees in parts if degrees > 0)
    if not below > 0:
        return total, max(degrees for _, degrees in parts)
    return total, max(total**2 / below, min(smallest, 1.0))


def half_width(variance: float, degrees: float) -> float:
    """Return t sqrt(variance), NaN where nothing is known of the spread."""
    return student_t(degrees) * math.sqrt(variance) if variance >= 0 else math.nan


def of_share(share: float, half: float) -> Interval:
    """Return the interval of a share between 0 and 1 from the half width of its t interval.

    The logit scale (half width h / (g (1 - g))) where the share lies below 5 % or above 95 %, or an
    end comes within a quarter of it to a limit.

    Args:
        share: 0 to 1, neither of both.
        half: half width of the symmetric interval.
    """
    if math.isnan(half) or math.isnan(share):
        return NONE
    low, high = share - half, share + half
    near = low < share / 4 or high > 1 - (1 - share) / 4
    if half == 0 or (LOW_SHARE <= share <= HIGH_SHARE and not near):
        return Interval(low, high, half, "t")
    if not 0 < share < 1:
        return Interval(max(0.0, low), min(1.0, high), half, "t")
    centre, reach = math.log(share / (1 - share)), half / (share * (1 - share))
    return Interval(expit(centre - reach), expit(centre + reach), half, "logit")


def expit(value: float) -> float:
    """Return 1 / (1 + exp(-value))."""
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def fraction(values: Sequence[float], least: int = MIN_SHARES) -> Fraction:
    """Return an area fraction over fields of one specimen, or over specimens (ASTM E1245).

    Mean +/- t(n - 1) s / sqrt(n); see :func:`of_share` near the limits. Where all values are 0 (or
    1) their spread is none and tells nothing: the rule of three, 3 / n over the values, bounds it.

    Args:
        values: one fraction a field, 0 to 1; at least one.
        least: number of values that carry an interval.
    """
    n, own = len(values), sample(values)
    std = math.sqrt(own.variance * n) if n > 1 else math.nan
    half = half_width(own.variance, own.degrees) if n >= least else math.nan
    found = of_share(own.mean, half)
    if n >= least and own.mean in (0.0, 1.0):
        reach = min(1.0, 3 / n)
        found = Interval(
            max(0.0, own.mean - reach), min(1.0, own.mean + reach), math.nan, "rule of three"
        )
    half = found.half_width
    relative = 100 * half / own.mean if own.mean > 0 else math.nan
    needed = fields_needed(own.mean, std) if n >= least else None
    return Fraction(own.mean, std, half, found.low, found.high, found.scale, relative, n, needed)


def fields_needed(mean: float, std: float, accuracy: float = WANTED_ACCURACY) -> int | None:
    """Return the smallest n with t(n - 1) s / sqrt(n) <= accuracy / 100 of the mean, in all.

    Args:
        mean: of the fields so far.
        std: of the fields so far.
        accuracy: wanted %RA.

    Returns:
        None where the mean is 0 or nothing is known of the spread.
    """
    if not mean > 0 or math.isnan(std):
        return None
    wanted = accuracy / 100 * mean
    # t is above 1.96, so that no smaller n fits; a few steps on it is below 2.1.
    n = max(2, math.floor((1.9599 * std / wanted) ** 2))
    while student_t(n - 1) * std > wanted * math.sqrt(n) * (1 + 1e-12):
        n += 1
    return n


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the mean of second minus the mean of first with its 95 % interval (Welch).

    Args:
        first: values of one specimen, a field each; any unit.
        second: values of the other.
    """
    return difference_of(sample(first), sample(second))


def difference_of(first: Sample, second: Sample) -> Difference:
    """Return second minus first with its 95 % interval (Welch).

    Args:
        first: of one specimen.
        second: of the other.
    """
    value = second.mean - first.mean
    if math.isnan(first.variance) or math.isnan(second.variance):
        return Difference(value, math.nan, math.nan)
    variance, degrees = combined(
        [(first.variance, first.degrees), (second.variance, second.degrees)]
    )
    return Difference(value, half_width(variance, degrees), degrees)


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
        values: one per field, in any unit; at least one.
    """
    own = sample(values)
    std = math.sqrt(own.variance * own.n) if own.n > 1 else math.nan
    half = half_width(own.variance, own.degrees) if own.n >= MIN_FIELDS else math.nan
    return Mean(own.mean, std, half, own.n)


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean of second minus first and the half width of its 95 % t interval.

    Args:
        first: one score per seed.
        second: scores of the same seeds in the same order.

    Returns:
        The half width is NaN with a single pair, of whose spread nothing is known.
    """
    gains = sample(np.subtract(second, first).tolist())
    return gains.mean, half_width(gains.variance, gains.degrees)


def over_sets_and_seeds(gains: NDArray[np.float64]) -> Difference:
    """Return the mean of the means of data sets with its interval for other sets and other seeds.

    Sets and seeds are both samples, and crossed: a seed may be lucky on every set, since its draws,
    or the pretraining it starts from, are the same there. The variance is the sum of that of the
    mean over sets, s^2 / D of the means of sets, and that over seeds, s^2 / S of the means of the
    seeds that every set has, with the degrees of freedom of Welch and Satterthwaite. The noise of
    single runs is in both, so that the interval is rather too wide (two-way clusters without the
    term of their intersection; Cameron, Gelbach and Miller 2011, doi 10.1198/jbes.2010.07136).
    Coverage: benchmarks/study_interval.py.

    Args:
        gains: float64 (D, S), NaN where there is no run; every set needs one at least.

    Returns:
        Without a half width of one set, whose spread over sets is unknown. With fewer than two
        common seeds the spread over sets alone.
    """
    sets = sample(np.nanmean(gains, axis=1).tolist())
    if sets.n < 2:
        return Difference(sets.mean, math.nan, math.nan)
    parts = [(sets.variance, sets.degrees)]
    common = gains[:, ~np.isnan(gains).any(axis=0)]
    if common.shape[1] > 1:
        seeds = sample(common.mean(axis=0).tolist())
        parts.append((seeds.variance, seeds.degrees))
    variance, degrees = combined(parts)
    return Difference(sets.mean, half_width(variance, degrees), degrees)


def jackknife(
    value: float, without: Sequence[float], low: float = 0.0, high: float = 1.0
) -> Interval:
    """Return the interval of a statistic of several fields from its values without each of them.

    The variance is (n - 1) / n times the sum of squares about the mean of those values (Efron and
    Stein 1981, doi 10.1214/aos/1176345462), with Student's t of n - 1; see :func:`of_share` near
    the limits of the statistic.

    Args:
        value: of all n fields.
        without: of all fields but one, n values.
        low: smallest value that the statistic can have.
        high: largest one.

    Returns:
        Without ends below MIN_FIELDS fields, where a value is NaN (a class of a single field), and
        where all are the same, so that nothing tells their spread.
    """
    n = len(without)
    if n < MIN_FIELDS or not np.isfinite([value, *without]).all():
        return NONE
    spread = float(np.sum((np.asarray(without) - np.mean(without)) ** 2))
    if spread == 0:
        return NONE
    width = high - low
    half = half_width((n - 1) / n * spread, n - 1.0) / width
    found = of_share((value - low) / width, half)
    ends = [low + width * end for end in (found.low, found.high)]
    return Interval(ends[0], ends[1], found.half_width * width, found.scale)


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
