"""Counts, and scores that are pure functions of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from matssl.metrics import overlap

# Per-class scores by the name they have in tables: (C, C) counts to (C,).
SCORES: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float64]]] = {
    "IoU": overlap.iou,
    "Dice": overlap.dice,
    "precision": overlap.precision,
    "recall": overlap.recall,
}
