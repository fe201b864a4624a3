"""Confusion matrices: the only thing that is accumulated."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE

# OpenCV counts in float32, exact up to 2^24; a block of 1 MiB also stays in the cache.
BLOCK = 1 << 20


def confusion(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Return int64 (C, C) pixel counts, rows truth, columns prediction.

    Args:
        truth: uint8 class indices, any shape; 255 counts for nothing.
        prediction: uint8 class indices, same shape.
        num_classes: C.

    Raises:
        ValueError: different shapes, or a class index of C or more.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    truth, prediction = (
        np.ascontiguousarray(truth).ravel(),
        np.ascontiguousarray(prediction).ravel(),
    )
    if num_classes**2 < 256:
        return _packed(truth, prediction, num_classes)
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * num_classes + prediction[known]
    if len(pairs) and (pairs.max() >= num_classes**2 or prediction[known].max() >= num_classes):
        raise ValueError(f"a class index is {num_classes} or more")
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def _packed(
    truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Count pairs packed into one byte; ignored pixels share the byte after the last pair."""
    if len(prediction) and int(prediction.max()) >= num_classes:
        raise ValueError(f"a predicted class index is {num_classes} or more")
    spare = num_classes**2
    counts = np.zeros(256, np.int64)
    ignored = 0
    for start in range(0, len(truth), BLOCK):
        # As columns: OpenCV takes one to four numbers in a row for a colour.
        t = truth[start : start + BLOCK, None]
        p = prediction[start : start + BLOCK, None]
        # Both steps saturate: an ignored pixel ends at 255, which is no pair of 15 classes.
        packed: Any = cv2.add(cv2.convertScaleAbs(t, alpha=num_classes), p)
        histogram = cv2.calcHist([packed], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        if histogram[spare:].any():
            # Only where something is no pair: the pass is a tenth of the time.
            ignored += int(np.count_nonzero(t == IGNORE))
        counts += histogram
    if counts[spare:].sum() != ignored:
        raise ValueError(f"a true class index is {num_classes} or more")
    return counts[:spare].reshape(num_classes, num_classes)
