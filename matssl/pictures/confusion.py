"""Where a prediction of one class is right and wrong, in the colours of unet-compare's CM2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

# R, G, B: found, found where there is none, missed.
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = (0, 255, 0), (0, 0, 255), (255, 0, 0)


def confusion_map(
    truth: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    known: NDArray[np.bool_],
    grey: Array | None = None,
) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3): green true and found, blue found and not true, red missed.

    All else is the micrograph, or black.

    Args:
        truth: pixels of the class (H, W).
        prediction: of the same class.
        known: pixels that count; what does not stays uncoloured.
        grey: the micrograph; uint8 as it is, other types from their darkest to their brightest.
    """
    result = np.zeros((*truth.shape, 3), np.uint8)
    if grey is not None:
        if grey.dtype != np.uint8:
            low, high = float(grey.min()), float(grey.max())
            grey = ((grey.astype(np.float32) - low) * (255 / max(high - low, 1e-9))).astype(
                np.uint8
            )
        result[:] = grey[..., None]
    result[truth & prediction & known] = TRUE_POSITIVE
    result[~truth & prediction & known] = FALSE_POSITIVE
    result[truth & ~prediction & known] = FALSE_NEGATIVE
    return result
