"""Which objects of two label images are the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import strips

# Intersection over union from which on two objects are the same.
SAME = 0.5


def greedy(
    true_labels: NDArray[np.int32],
    labels: NDArray[np.int32],
    true: NDArray[np.int64],
    predicted: NDArray[np.int64],
    least: float = SAME,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the matches of two label images: the best first, each object once.

    Args:
        true_labels: true object of each pixel from 1 on, 0 for none, int32 (H, W).
        labels: predicted object, likewise.
        true: pixels of each true object, int64 (n,).
        predicted: pixels of each predicted object, int64 (m,).
        least: intersection over union from which on two objects are the same.

    Returns:
        Numbers from 0 of a true and a predicted object, int64 (k, 2), and their intersection over
        union, float64 (k,).
    """
    # One number for each pair of objects; its pixels are their intersection.
    met, shared = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for rows in strips(len(labels)):
        both = (true_labels[rows] > 0) & (labels[rows] > 0)
        codes = true_labels[rows][both].astype(np.int64) * (len(predicted) + 1)
        found, here = np.unique(codes + labels[rows][both], return_counts=True)
        met, place = np.unique(np.concatenate([met, found]), return_inverse=True)
        shared = np.bincount(place, np.concatenate([shared, here])).astype(np.int64)
    first, second = np.divmod(met, len(predicted) + 1)
    first, second = first - 1, second - 1
    union = true[first] + predicted[second] - shared
    # Twice the intersection against the union in whole numbers: one half is no matter of rounding.
    same = np.flatnonzero(shared >= least * union)
    ious = shared[same] / union[same]
    taken_true, taken = np.zeros(len(true), bool), np.zeros(len(predicted), bool)
    kept = []
    for place in np.argsort(-ious, kind="stable"):
        one, other = first[same[place]], second[same[place]]
        if not taken_true[one] and not taken[other]:
            taken_true[one] = taken[other] = True
            kept.append(place)
    chosen = same[np.array(kept, np.intp)]
    return np.stack([first[chosen], second[chosen]], axis=1), shared[chosen] / union[chosen]
