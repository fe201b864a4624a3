"""Cohen's kappa: how far two annotators agree beyond what chance would give."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def kappa(counts: NDArray[np.int64]) -> float:
    """Return (p_o - p_e) / (1 - p_e) of a confusion matrix, (C, C) to one number from -1 to 1.

    p_o is the share of pixels on which both agree, p_e what two who draw each class as often and
    know nothing of each other would agree on: Cohen, "A coefficient of agreement for nominal
    scales", Educational and Psychological Measurement 20 (1960), doi 10.1177/001316446002000104.

    Returns:
        NaN without pixels, and where both give all pixels one class: chance agrees as well then.
    """
    total = counts.sum()
    if not total:
        return float("nan")
    shares = counts / total
    expected = float(shares.sum(axis=0) @ shares.sum(axis=1))
    if expected >= 1:
        return float("nan")
    return (float(np.trace(shares)) - expected) / (1 - expected)
