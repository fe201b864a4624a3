"""Boundary F1: how well the borders of a class are met, give or take two pixels.

The contour F measure of Csurka et al., "What is a good evaluation measure for semantic
segmentation?", BMVC 2013, and of Perazzi et al., "A benchmark dataset and evaluation methodology
for video object segmentation", CVPR 2016. Both average over images; here border pixels are summed
over images, as pixels are for the IoU, and the tolerance is a number of pixels instead of a share
of the diagonal: a large micrograph is drawn no less exactly than a small one.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE

# A border pixel is met by one of the other mask at this Euclidean distance or less.
TOLERANCE = 2
_STEPS = np.arange(-TOLERANCE, TOLERANCE + 1)
_DISC = (_STEPS[:, None] ** 2 + _STEPS**2 <= TOLERANCE**2).astype(np.uint8)
# Rows at once: what is held beside the masks is then small for an image of any size.
STRIP = 512
# Rows beside a strip that decide about its own: the neighbour of a border pixel within tolerance.
HALO = TOLERANCE + 1


def border_hits(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Return the border pixels of each class and how many are met, int64 (C, 4).

    A pixel is on the border of its class where one of its four neighbours is of another class. The
    edge of the image is no border, nor is that of ignored pixels: what lies under those is unknown,
    so they are left out of the prediction too, make no border and meet none.

    Args:
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        prediction: class indices, same shape.
        num_classes: C.

    Returns:
        Predicted border pixels that are met, all predicted ones, true ones that are met, all true
        ones.
    """
    totals = np.zeros((num_classes, 4), np.int64)
    for top in range(0, len(truth), STRIP):
        first, last = max(0, top - HALO), top + STRIP + HALO
        known = truth[first:last]
        guess = np.where(known == IGNORE, np.uint8(IGNORE), prediction[first:last])
        rows = slice(top - first, top - first + STRIP)
        totals += _hits(_borders(guess), _borders(known), rows, num_classes)
    return totals


def f1(stacked: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 2PR / (P + R) of each class, (n, C, 4) hits of n images to (C,).

    P is the share of predicted border pixels that are met, R that of the true ones. 0 where only
    one of the two has a border, NaN where neither has.
    """
    predicted_hits, predicted, true_hits, true = stacked.sum(axis=0).T
    precision = predicted_hits / np.maximum(predicted, 1)
    recall = true_hits / np.maximum(true, 1)
    both = precision + recall
    score = 2 * precision * recall / np.where(both > 0, both, 1)
    return np.where(predicted + true > 0, score, np.nan)


def _borders(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the class of each pixel that is on a border, 255 elsewhere."""
    known = labels != IGNORE
    found = np.zeros(labels.shape, bool)
    for here, there in (
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        meets = (labels[here] != labels[there]) & known[here] & known[there]
        found[here] |= meets
        found[there] |= meets
    return np.where(found, labels, np.uint8(IGNORE))


def _hits(
    predicted: NDArray[np.uint8], true: NDArray[np.uint8], rows: slice, num_classes: int
) -> NDArray[np.int64]:
    """Return the numbers of :func:`border_hits` for some rows of two maps of borders."""
    totals = np.zeros((num_classes, 4), np.int64)
    for kind in range(num_classes):
        own, other = ((borders == kind).view(np.uint8) for borders in (predicted, true))
        near_own, near_other = (cv2.dilate(borders, _DISC) for borders in (own, other))
        totals[kind] = [
            np.count_nonzero(found[rows])
            for found in (own & near_other, own, other & near_own, other)
        ]
    return totals
