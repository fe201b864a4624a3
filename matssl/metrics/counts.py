"""Confusion matrices: the only thing that is accumulated."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

IGNORE = 255
# OpenCV counts in float32, which is exact up to 2^24.
BLOCK = 1 << 23


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
    table = np.full(256, 255, np.uint8)
    table[:num_classes] = np.arange(num_classes) * num_classes
    counts = np.zeros(256, np.int64)
    for start in range(0, len(truth), BLOCK):
        t, p = truth[start : start + BLOCK], prediction[start : start + BLOCK]
        packed: Any = cv2.add(cv2.LUT(t, table), p)
        # 255 + p saturates at 255; with 15 classes or fewer no pair is packed that high.
        histogram = cv2.calcHist([packed], [0], None, [256], [0, 256])
        counts += histogram.ravel().astype(np.int64)
    ignored = int((truth == IGNORE).sum())
    if counts[spare:].sum() != ignored:
        raise ValueError(f"a true class index is {num_classes} or more")
    return counts[:spare].reshape(num_classes, num_classes)
