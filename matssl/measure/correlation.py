"""The interval of an area fraction from one field: by the two-point correlation of its phase.

One field has no spread from field to field. How far its own fraction may lie off that of the
specimen follows from how far its phase is correlated with itself: the variance of the area fraction
is p (1 - p) A2 / A, with the area A and the integral range A2, the integral of the covariance over
that at distance 0 (Lantuejoul, J. Microsc. 161, 387, 1991; the idea of Dahari et al., Adv. Sci.,
2025, ImageRep, to take it from one picture).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from matssl.measure.intervals import Sample

# The shorter side of a field is at least this many times sqrt(A2): below, a field holds too few
# independent parts to tell its own correlation.
MIN_RATIO = 10.0
# Longest side whose covariance is computed; larger fields are summed in blocks, which leaves the
# sum of the covariance, all that is wanted, as it is.
LARGEST = 512
# Rounds in which what the field's own mean takes from the covariance is given back.
ROUNDS = 2


@dataclass(frozen=True)
class Correlated:
    """What one field tells of the error of its own area fraction.

    Attributes:
        share: area fraction p.
        integral_range: A2 in px^2; NaN where the phase is all or nothing of the field.
        variance: of the share; NaN like it.
        degrees: of freedom of the variance: about the independent parts of the field.
        ratio: shorter side over sqrt(A2); NaN like it.
    """

    share: float
    integral_range: float
    variance: float
    degrees: float
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether the field is large enough for an interval of its own."""
        return self.ratio > MIN_RATIO

    @property
    def sample(self) -> Sample:
        """The field as a sample of its specimen; of unknown variance where it is too small."""
        variance = self.variance if self.holds else math.nan
        return Sample(self.share, variance, self.degrees, 1)

    @property
    def refusal(self) -> str:
        """Why one field carries no interval, in words; "" where it does."""
        if self.holds:
            return ""
        if math.isnan(self.ratio):
            return "the phase is all or nothing of a field: more fields are needed"
        return (
            f"a field is less than {MIN_RATIO:g} correlation lengths wide: more fields, or larger "
            "ones, are needed"
        )


def variance_of_share(share: float, integral_range: float, area: float) -> float:
    """Return p (1 - p) A2 / A.

    Args:
        share: area fraction p.
        integral_range: A2, in the unit of the area.
        area: of the field.
    """
    return share * (1 - share) * integral_range / area


def of_field(phase: NDArray[np.bool_], counts: NDArray[np.bool_] | None = None) -> Correlated:
    """Return the integral range of a phase and the variance of its area fraction.

    The covariance is averaged over directions and summed up to its first zero: over the whole field
    it sums to zero, since the mean is the field's own.

    Args:
        phase: where the phase is, bool (H, W).
        counts: which pixels count, bool (H, W); all where None.
    """
    inside = np.ones(phase.shape, bool) if counts is None else counts
    area = int(inside.sum())
    share = int((phase & inside).sum()) / area if area else math.nan
    if not 0 < share < 1:
        return Correlated(share, math.nan, math.nan, math.nan, math.nan)
    if min(phase.shape) < 2:
        # A single line of pixels tells nothing across.
        return Correlated(share, math.nan, math.nan, math.nan, 0.0)
    block = math.ceil(max(phase.shape) / LARGEST)
    parts = _blocks(inside, block)
    covariance = _rings(_blocks(phase & inside, block) - share * parts, parts)
    spread, own = share * (1 - share), 0.0
    for _ in range(ROUNDS):
        own = _summed(covariance, own) * block**2 / area
    integral_range = own * area / (spread + own)
    variance = variance_of_share(share, integral_range, area) / (1 - integral_range / area)
    ratio = min(phase.shape) / math.sqrt(integral_range)
    return Correlated(share, integral_range, variance, area / integral_range, ratio)


def of_sequence(frames: Sequence[Correlated]) -> Correlated:
    """Return what the frames of one sequence tell of their mean: as much as one of them.

    Frames are taken for wholly alike, so that their mean errs as a frame does; of a frame whose
    phase is all or nothing nothing is known, and of the smallest one the least is.

    Args:
        frames: at least one.
    """
    if len(frames) == 1:
        return frames[0]
    share = float(np.mean([one.share for one in frames]))
    worst = next((one for one in frames if not one.holds), None)
    if worst is not None:
        return replace(worst, share=share)
    return Correlated(
        share,
        float(np.mean([one.integral_range for one in frames])),
        float(np.mean([one.variance for one in frames])),
        min(one.degrees for one in frames),
        min(one.ratio for one in frames),
    )


def _blocks(mask: NDArray[np.bool_], side: int) -> NDArray[np.float64]:
    """Return the pixels of a mask in each block of side x side, float64."""
    rows = np.add.reduceat(mask.astype(np.int64), np.arange(0, mask.shape[0], side), axis=0)
    found = np.add.reduceat(rows, np.arange(0, mask.shape[1], side), axis=1)
    return found.astype(np.float64)


def _rings(
    deviation: NDArray[np.float64], parts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the mean covariance at each distance up to half the shorter side, and its lags.

    Args:
        deviation: of each block from the mean, summed over its pixels, (h, w).
        parts: pixels of each block that count.
    """
    from scipy import fft

    height, width = deviation.shape
    shape = (fft.next_fast_len(2 * height - 1, True), fft.next_fast_len(2 * width - 1, True))
    sums = fft.irfft2(np.abs(fft.rfft2(deviation, shape)) ** 2, shape)
    pairs = fft.irfft2(np.abs(fft.rfft2(parts, shape)) ** 2, shape)
    reach = max(1, min(height, width) // 2)
    steps = [np.arange(-reach, reach + 1)] * 2
    at = np.ix_(*steps)
    distance = np.rint(np.hypot(*np.meshgrid(*steps, indexing="ij"))).astype(np.int64)
    near = distance <= reach
    size = reach + 1
    total = np.bincount(distance[near], sums[at][near], size)
    weight = np.bincount(distance[near], pairs[at][near], size)
    lags = np.bincount(distance[near], minlength=size)
    return total / np.maximum(weight, 0.5), lags


def _summed(covariance: tuple[NDArray[np.float64], NDArray[np.int64]], own: float) -> float:
    """Return the sum of the covariance up to its first zero.

    Args:
        covariance: mean and number of lags by distance.
        own: variance of the mean, which the field's own mean took from every lag.
    """
    means, lags = covariance
    below = np.flatnonzero(means <= 0)
    end = int(below[0]) if len(below) else len(means)
    return float(np.sum((means[:end] + own) * lags[:end]))
