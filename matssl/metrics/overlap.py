"""Scores of overlap as pure functions of a confusion matrix (rows truth, columns prediction).

A class that is in neither truth nor prediction has no score: NaN, and it leaves the mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]


def iou(counts: Counts) -> Scores:
    """Return TP / (TP + FP + FN) of each class, (C, C) to (C,)."""
    hit, truth, predicted = _parts(counts)
    return _ratio(hit, truth + predicted - hit)


def dice(counts: Counts) -> Scores:
    """Return 2 TP / (2 TP + FP + FN) of each class, the F1 score, (C, C) to (C,)."""
    hit, truth, predicted = _parts(counts)
    return _ratio(2 * hit, truth + predicted)


def precision(counts: Counts) -> Scores:
    """Return TP / (TP + FP) of each class, 0 where a true class is never predicted."""
    hit, truth, predicted = _parts(counts)
    return np.where((predicted == 0) & (truth > 0), 0.0, _ratio(hit, predicted))


def recall(counts: Counts) -> Scores:
    """Return TP / (TP + FN) of each class, 0 where a predicted class is nowhere true."""
    hit, truth, predicted = _parts(counts)
    return np.where((truth == 0) & (predicted > 0), 0.0, _ratio(hit, truth))


def accuracy(counts: Counts) -> float:
    """Return the share of right pixels; NaN without pixels."""
    total = counts.sum()
    return float(np.trace(counts) / total) if total else float("nan")


def mean(scores: Scores) -> float:
    """Return the mean over the classes that have a score; NaN where none has."""
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def miou(counts: Counts) -> float:
    """Return the mean IoU over the classes present in truth or prediction."""
    return mean(iou(counts))


def published_miou(counts: Counts) -> float:
    """Return the mean IoU of the MatSSL code, in which an absent class counts 0."""
    return float(np.nan_to_num(iou(counts)).mean())


def summary(counts: Counts) -> dict[str, object]:
    """Return what else one number can say of a confusion matrix, each under its own name."""
    scores = iou(counts)
    weights = counts.sum(axis=1)
    weighted = np.nansum(scores * weights) / weights.sum() if weights.sum() else np.nan
    return {
        "accuracy": accuracy(counts),
        "frequency_weighted_iou": float(weighted),
        "published_miou_absent_is_0": published_miou(counts),
        "miou_without_class_0": mean(scores[1:]),
        "mdice_without_class_0": mean(dice(counts)[1:]),
        "absent_classes": np.flatnonzero(np.isnan(scores)).tolist(),
    }


def pooled(score: Callable[[Counts], Scores]) -> Callable[[Counts], Scores]:
    """Return the score of the summed matrices of several images, (n, C, C) to (C,)."""
    return lambda stacked: score(stacked.sum(axis=0))


def _parts(counts: Counts) -> tuple[Counts, Counts, Counts]:
    return np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)


def _ratio(part: Counts, whole: Counts) -> Scores:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
