"""The interval of a mean IoU over specimens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.measure.intervals import MIN_FIELDS, expit, half_width


@dataclass(frozen=True)
class ScoreInterval:
    """The interval of a mean IoU, or why there is none.

    Attributes:
        low: lower end; NaN where there is none.
        high: upper end.
        groups: independent specimens or images.
        needed: how many would carry one; as many as there are, where they do.
        lonely: index of a class that lies in a single one of them, so that nothing tells its
            spread; None where each lies in several.
    """

    low: float
    high: float
    groups: int
    needed: int
    lonely: int | None = None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Lower and upper end, None where there is no interval."""
        return None if math.isnan(self.low) else (self.low, self.high)


def mean_iou(counts: Sequence[NDArray[np.int64]], groups: Sequence[str]) -> ScoreInterval:
    """Return the 95 % interval of the mean IoU of pooled pixels.

    Jackknife over groups (images of one specimen are no independent samples) on the logit scale,
    with Student's t. The classes are those of all images together: leaving a specimen out changes
    their IoU, never which classes the mean is over. Its degrees of freedom are those of the
    classes, weighted with their shares of the variance: a class whose pixels lie in few of many
    specimens is known as well as those few tell (Kish's effective number).

    Args:
        counts: confusion matrix of each image, rows truth, columns prediction, int64 (C, C).
        groups: group of each image.

    Returns:
        Without ends below MIN_FIELDS groups, and where a class lies in one group alone.
    """
    names = sorted(set(groups))
    n, needed = len(names), max(len(names), MIN_FIELDS)
    missing = ScoreInterval(math.nan, math.nan, n, needed)
    if n < MIN_FIELDS:
        return missing
    places = np.array([names.index(group) for group in groups])
    sums = np.zeros((n, *np.shape(counts[0])))
    np.add.at(sums, places, np.asarray(counts, np.float64))
    hits = np.diagonal(sums, axis1=1, axis2=2)
    truth = sums.sum(axis=2)
    union = truth + sums.sum(axis=1) - hits
    present = union.sum(axis=0) > 0
    if not present.any():
        return missing
    hits, truth, union = hits[:, present], truth[:, present], union[:, present]
    alone = np.flatnonzero((union > 0).sum(axis=0) < 2)
    if len(alone):
        lonely = int(np.flatnonzero(present)[alone[0]])
        return ScoreInterval(math.nan, math.nan, n, n + 1, lonely)
    iou = hits.sum(axis=0) / union.sum(axis=0)
    mean = float(iou.mean())
    # What each IoU loses without a group, exactly: a ratio of sums.
    lost = (hits - iou * union) / (union.sum(axis=0) - union)
    own = lost.mean(axis=1)
    variance = float((n - 1) / n * np.sum((own - own.mean()) ** 2))
    if variance == 0 or not 0 < mean < 1:
        return ScoreInterval(mean, mean, n, n)
    share = (lost**2).sum(axis=0) / (lost**2).sum()
    freedom = np.maximum(_effective(union, truth) - 1, 0.3)
    degrees = min(max(1 / float(np.sum(share / freedom)), 1.0), n - 1.0)
    reach = half_width(variance, degrees) / (mean * (1 - mean))
    centre = math.log(mean / (1 - mean))
    return ScoreInterval(expit(centre - reach), expit(centre + reach), n, n)


def _effective(union: NDArray[np.float64], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return in how many groups each class lies, in effect, float64 (C,): (sum w)^2 / sum w^2.

    Args:
        union: pixels of each class in truth or prediction, float64 (groups, C).
        truth: pixels of each class in the truth.
    """
    by_union = union.sum(axis=0) ** 2 / (union**2).sum(axis=0)
    squares = (truth**2).sum(axis=0)
    by_truth = np.where(squares > 0, truth.sum(axis=0) ** 2 / np.maximum(squares, 1), by_union)
    # False alarms all over the place hide that a rare class was seen in a few specimens alone.
    return np.where(by_truth < by_union / 2, by_truth, by_union)
