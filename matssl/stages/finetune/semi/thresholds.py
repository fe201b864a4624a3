"""How sure a teacher must be of each class, and when a class is lost among what it says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE


def labelled_shares(masks: Sequence[NDArray[np.uint8]], num_classes: int) -> NDArray[np.float64]:
    """Return the share of each class in the labelled pixels, float64 (num_classes,), sum 1.

    Args:
        masks: (H, W) each, class indices or 255; at least one pixel is labelled.
        num_classes: how many there are.
    """
    pixels = np.zeros(num_classes)
    for mask in masks:
        pixels += np.bincount(mask[mask != IGNORE], minlength=num_classes)[:num_classes]
    return pixels / pixels.sum()


def thresholds(
    shares: Sequence[float] | NDArray[np.float64], common: float, rare: float
) -> tuple[float, ...]:
    """Return the probability from which each class is believed.

    ``rare + (common - rare) min(1, share C)``: that of a common class from an even share, 1/C, on,
    and below it the less the rarer the class is. A network trained on few labels is hardly ever
    sure of a rare phase, so that one high threshold would leave it out.

    Args:
        shares: of the classes in the labelled pixels.
        common: probability for common classes.
        rare: probability for a class of share 0.
    """
    count = len(shares)
    return tuple(float(rare + (common - rare) * min(1.0, share * count)) for share in shares)


def lost(
    counts: Sequence[float] | NDArray[np.float64],
    shares: Sequence[float] | NDArray[np.float64],
    ratio: float,
) -> tuple[int, ...]:
    """Return the classes whose share among some labels is below ``ratio`` of the labelled one.

    Args:
        counts: pixels of each class; none where there are no labels at all.
        shares: of the classes in the labelled pixels.
        ratio: 0 to 1; 0 finds nothing.
    """
    total = float(sum(counts))
    if total == 0:
        return ()
    pairs = zip(counts, shares, strict=True)
    return tuple(c for c, (n, share) in enumerate(pairs) if n / total < ratio * share)
