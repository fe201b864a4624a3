"""The classifier's own error: area fractions corrected from held-out truth, with its interval.

A phase against the rest. Of a new specimen the model says the share x; its error is known from
held-out images alone, whose specimens differ in it. Correcting with P(true | predicted), or with
precision over recall, is right at the held-out fraction alone; inverting mean error rates is not
bound to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from matssl.measure import intervals
from matssl.measure.held_out import HeldOut
from matssl.measure.intervals import Difference, Interval, Sample

# Fewer held-out specimens do not tell how specimens differ.
MIN_HELD_OUT = 4
# A classifier that finds less than this above chance has no error to be inverted.
MIN_SKILL = 0.1

Method = Literal["error rates", "straight line"]


@dataclass(frozen=True)
class Rates:
    """What held-out images say of a phase against the rest.

    Attributes:
        specimens: of each image, by number, int64 (n,).
        misses: false negative rate of each image, FNR, float64 (n,).
        alarms: false positive rate of each image, FPR.
        predicted: share that the model says.
        true: share it is.
        left_out: images with nothing but the phase or nothing of it, that have one rate alone.
    """

    specimens: NDArray[np.int64]
    misses: NDArray[np.float64]
    alarms: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    left_out: int = 0

    @property
    def count(self) -> int:
        """Number of specimens."""
        return len(set(self.specimens.tolist()))

    @property
    def skill(self) -> float:
        """J = 1 - FNR - FPR, with the mean rates over images."""
        return 1 - float(self.misses.mean()) - float(self.alarms.mean())

    def by_specimen(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of each specimen, float64 (m,)."""
        _, places = np.unique(self.specimens, return_inverse=True)
        return np.bincount(places, values) / np.bincount(places)

    def only(self, chosen: NDArray[np.bool_]) -> Rates:
        """Return the images that are chosen."""
        return replace(
            self,
            specimens=self.specimens[chosen],
            misses=self.misses[chosen],
            alarms=self.alarms[chosen],
            predicted=self.predicted[chosen],
            true=self.true[chosen],
        )


@dataclass(frozen=True)
class Correction:
    """An area fraction without the classifier's error, as far as held-out truth tells it.

    Attributes:
        raw: share that the model says.
        value: corrected share.
        interval: of both errors together.
        sampling: half width from the spread of fields or specimens alone.
        classifier: half width from the classifier's error alone.
        method: by what it was corrected.
        misfit: root mean square error of held-out specimens, each estimated without itself: raw, by
            error rates, by a straight line; NaN where a way had nothing to go by.
        specimens: held-out ones.
        images: held-out ones.
        outside: whether the share lies outside those of the held-out specimens.
        left_out: held-out images with nothing but the phase or nothing of it.
    """

    raw: float
    value: float
    interval: Interval
    sampling: float
    classifier: float
    method: Method
    misfit: tuple[float, float, float]
    specimens: int
    images: int
    outside: bool
    left_out: int

    @property
    def off(self) -> bool:
        """Whether raw and corrected differ by more than the interval.

        Without one, since nothing is known of the spread of the fields: by more than the
        classifier's own half width.
        """
        if math.isnan(self.interval.low):
            return abs(self.raw - self.value) > self.classifier
        return not self.interval.low <= self.raw <= self.interval.high

    def scaled(self, factor: float) -> Correction:
        """Return it with share and interval times a factor, within [0, 1]."""
        ends = replace(
            self.interval,
            low=float(np.minimum(1.0, self.interval.low * factor)),
            high=float(np.minimum(1.0, self.interval.high * factor)),
            half_width=self.interval.half_width * factor,
        )
        return replace(
            self,
            value=min(1.0, self.value * factor),
            interval=ends,
            sampling=self.sampling * factor,
            classifier=self.classifier * factor,
        )


@dataclass(frozen=True)
class Corrected:
    """All classes of a specimen, or of the mean over specimens, without the classifier's error.

    Attributes:
        classes: the correction of each class; None where there is none.
        refusals: why there is none, in words; "" where there is one.
        renormalised: whether more than two classes were each corrected against the rest and then
            divided by their sum.
    """

    classes: tuple[Correction | None, ...]
    refusals: tuple[str, ...]
    renormalised: bool


@dataclass(frozen=True)
class _Estimate:
    """A corrected share with the variances of its parts, each with its degrees of freedom."""

    value: float
    sampling: tuple[float, float]
    classifier: tuple[float, float]


def rates(images: Sequence[HeldOut], kind: int) -> Rates:
    """Return the error rates of a class against the rest.

    Args:
        images: held-out ones.
        kind: index of the class.
    """
    names = sorted({one.specimen for one in images})
    rows = []
    for one in images:
        matrix = one.confusion.astype(np.float64)
        total, truth, found = matrix.sum(), matrix[kind].sum(), matrix[:, kind].sum()
        if not 0 < truth < total:
            continue
        hits = matrix[kind, kind]
        miss, alarm = 1 - hits / truth, (found - hits) / (total - truth)
        rows.append((names.index(one.specimen), miss, alarm, found / total, truth / total))
    table = np.array(rows, np.float64).reshape(-1, 5).T.copy()
    specimens, left_out = table[0].astype(np.int64), len(images) - len(rows)
    return Rates(specimens, table[1], table[2], table[3], table[4], left_out)


def refusal(held: Rates) -> str:
    """Return why nothing is corrected from these held-out images, in words; "" where it is."""
    if held.count < MIN_HELD_OUT:
        return (
            f"{held.count} held-out specimens show the phase and something else, and "
            f"{MIN_HELD_OUT} are needed to know the classifier's error"
        )
    if held.skill < MIN_SKILL:
        return "the classifier does not tell the phase from the rest on held-out images"
    return ""


def correct(x: Sample, held: Rates, several: bool = False) -> Correction:
    """Return an area fraction without the classifier's error, with an interval of both errors.

    By mean error rates: g = (x - FPR) / J with J = 1 - FNR - FPR; of each held-out image the error
    e = g FNR_i - (1 - g) FPR_i, its means e_k by specimen; variance = (v_x + s^2(e_k) / m + B) /
    J^2, where B, for one specimen, is the variance between specimens of the mean error. Or by a
    straight line through (predicted, true) of the held-out specimens, with its prediction
    interval. What leave-one-specimen-out prefers is taken. Degrees of freedom after Welch and
    Satterthwaite.

    Args:
        x: share that the model says: of the fields of one specimen, or of several specimens.
        held: rates of the phase on held-out images, without a :func:`refusal`.
        several: whether x is a mean over specimens, whose own deviations are then in its spread.
    """
    misfit = _misfit(held)
    shares = held.by_specimen(held.predicted)
    outside = not shares.min() <= x.mean <= shares.max()
    # Beyond the held-out shares a line is an extrapolation.
    line = misfit[2] < misfit[1] and not outside
    found = _by_line(x, held, several) if line else _by_rates(x, held, several)
    interval = _interval(found)
    if outside:
        interval = _union(interval, _by_logit(x, held, several))
    return Correction(
        x.mean,
        min(1.0, max(0.0, found.value)),
        interval,
        intervals.half_width(*found.sampling),
        intervals.half_width(*found.classifier),
        "straight line" if line else "error rates",
        misfit,
        held.count,
        len(held.specimens),
        outside,
        held.left_out,
    )


def of_classes(samples: Sequence[Sample], held: Sequence[HeldOut], several: bool) -> Corrected:
    """Return the corrected shares of all classes, each against the rest.

    Those of more than two classes are divided by their sum, where all could be corrected.

    Args:
        samples: share of each class that the model says.
        held: held-out images, with classes in the same order.
        several: whether the shares are means over specimens.
    """
    known = [rates(held, kind) for kind in range(len(samples))]
    refusals = tuple(refusal(one) for one in known)
    found = [
        None if refused or math.isnan(x.mean) else correct(x, own, several)
        for x, own, refused in zip(samples, known, refusals, strict=True)
    ]
    whole = [one for one in found if one is not None]
    total = sum(one.value for one in whole)
    if len(found) < 3 or len(whole) < len(found) or not total > 0:
        return Corrected(tuple(found), refusals, False)
    return Corrected(tuple(one.scaled(1 / total) for one in whole), refusals, True)


def difference(first: Sample, second: Sample, held: Rates) -> Difference:
    """Return the corrected share of a second specimen minus that of a first, with its interval.

    Both were seen by one classifier: its mean error cancels but for what differs with the share,
    (g_2 - g_1) (FNR + FPR); each specimen's own deviation does not.

    Args:
        first: share that the model says of the fields of one specimen.
        second: of the other.
        held: rates of the phase on held-out images, without a :func:`refusal`.
    """
    skill = held.skill
    one, other = _by_rates(first, held, False), _by_rates(second, held, False)
    value = other.value - one.value
    slopes = held.by_specimen(value * (held.misses + held.alarms))
    m = len(slopes)
    parts = [one.sampling, other.sampling]
    parts.append((float(np.var(slopes, ddof=1)) / m / skill**2, m - 1.0))
    for own in (one, other):
        parts.append((_between(_errors(own.value, held), held) / skill**2, m - 1.0))
    if any(math.isnan(variance) for variance, _ in parts):
        return Difference(value, math.nan, math.nan)
    variance, degrees = intervals.combined(parts)
    return Difference(value, intervals.half_width(variance, degrees), degrees)


def _errors(share: float, held: Rates) -> NDArray[np.float64]:
    """Return e of each image: how much too little the model says where the true share is this."""
    return share * held.misses - (1 - share) * held.alarms


def _between(errors: NDArray[np.float64], held: Rates) -> float:
    """Return the variance between specimens of their mean error, without that within them.

    Args:
        errors: of each image.
        held: whose specimens they are of.
    """
    _, places, sizes = np.unique(held.specimens, return_inverse=True, return_counts=True)
    means = held.by_specimen(errors)
    between = float(np.var(means, ddof=1))
    free = len(errors) - len(means)
    if not free:
        # With one image a specimen both are one: the interval is wide, never short.
        return between
    within = float(np.sum((errors - means[places]) ** 2)) / free
    return max(0.0, between - within * float(np.mean(1 / sizes)))


def _by_rates(x: Sample, held: Rates, several: bool) -> _Estimate:
    skill, m = held.skill, held.count
    share = (x.mean - float(held.alarms.mean())) / skill
    # A share below 0 or above 1 has the error rates of the limit.
    errors = _errors(min(1.0, max(0.0, share)), held)
    classifier = float(np.var(held.by_specimen(errors), ddof=1)) / m
    if not several:
        classifier += _between(errors, held)
    return _Estimate(share, (x.variance / skill**2, x.degrees), (classifier / skill**2, m - 1.0))


def _by_line(x: Sample, held: Rates, several: bool) -> _Estimate:
    predicted, true = held.by_specimen(held.predicted), held.by_specimen(held.true)
    slope, start, scatter, spread = _line(predicted, true)
    m = len(predicted)
    reach = (x.mean - float(predicted.mean())) ** 2 / spread
    residual = scatter * (1 / m + reach + 1 / (x.n if several else 1))
    return _Estimate(
        start + slope * x.mean, (slope**2 * x.variance, x.degrees), (residual, m - 2.0)
    )


def _line(
    predicted: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Return slope, value at 0, variance of the residuals (m - 2) and sum of squares of x."""
    centred = predicted - predicted.mean()
    spread = float(centred @ centred)
    if not spread > 0:
        return math.nan, math.nan, math.nan, math.nan
    slope = float(centred @ true) / spread
    start = float(true.mean()) - slope * float(predicted.mean())
    off = true - start - slope * predicted
    return slope, start, float(off @ off) / max(len(true) - 2, 1), spread


def _misfit(held: Rates) -> tuple[float, float, float]:
    """Return the error of each way on held-out specimens, each estimated without itself."""
    found = []
    for specimen in np.unique(held.specimens):
        own = held.specimens == specimen
        others = held.only(~own)
        seen, true = float(held.predicted[own].mean()), float(held.true[own].mean())
        skill = others.skill
        rated = (seen - float(others.alarms.mean())) / skill if skill >= MIN_SKILL else math.nan
        slope, start, _, _ = _line(
            others.by_specimen(others.predicted), others.by_specimen(others.true)
        )
        found.append((seen - true, min(1.0, max(0.0, rated)) - true, start + slope * seen - true))
    raw, rated, lined = np.sqrt(np.mean(np.square(found), axis=0)).tolist()
    return raw, rated, lined


def _interval(found: _Estimate) -> Interval:
    variance, degrees = intervals.combined([found.sampling, found.classifier])
    half = intervals.half_width(variance, degrees)
    if math.isnan(half):
        return intervals.NONE
    inside = min(1.0, max(0.0, found.value))
    if inside in (0.0, 1.0):
        return Interval(max(0.0, inside - half), min(1.0, inside + half), half, "t")
    return intervals.of_share(inside, half)


def _by_logit(x: Sample, held: Rates, several: bool) -> Interval:
    """Return the interval where errors are a constant difference of logits."""
    # Half a pixel of a large image keeps the logits of 0 and 1 finite.
    tiny = 1e-6
    seen, true = (np.clip(held.by_specimen(v), tiny, 1 - tiny) for v in (held.predicted, held.true))
    shifts = np.log(true / (1 - true)) - np.log(seen / (1 - seen))
    share, m = min(1 - tiny, max(tiny, x.mean)), len(shifts)
    own = float(np.var(shifts, ddof=1))
    classifier = own / m + (0.0 if several else own)
    variance, degrees = intervals.combined(
        [(x.variance / (share * (1 - share)) ** 2, x.degrees), (classifier, m - 1.0)]
    )
    half = intervals.half_width(variance, degrees)
    centre = math.log(share / (1 - share)) + float(shifts.mean())
    return Interval(intervals.expit(centre - half), intervals.expit(centre + half), half, "logit")


def _union(first: Interval, second: Interval) -> Interval:
    """Return the interval from the lower of both lower ends to the upper of both upper ones."""
    if math.isnan(first.low) or math.isnan(second.low):
        return first
    return replace(first, low=min(first.low, second.low), high=max(first.high, second.high))
