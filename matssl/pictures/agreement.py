"""Where two annotators of one picture differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE

# R, G, B: pixels to which both give another class, outlines of the first and of the second.
DIFFERENT, FIRST, SECOND = (204, 0, 122), (0, 114, 178), (230, 159, 0)
# Share of the colour over the micrograph.
OPACITY = 0.6
# What is drawn upon where no micrograph is there.
PAPER = 235


def disagreement(
    one: NDArray[np.uint8], other: NDArray[np.uint8], grey: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3): the micrograph, magenta where the masks differ, outlines of both.

    Outlines of the first are blue, those of the second orange; where both run, the second is seen.
    Pixels that one of them ignores are no difference.

    Args:
        one: class numbers of the first, uint8 (H, W); 255 is ignored.
        other: class numbers of the second.
        grey: the micrograph, uint8 (H, W); light grey where None.
    """
    result = np.full((*one.shape, 3), PAPER, np.uint8)
    if grey is not None:
        result[:] = grey[..., None]
    different = (one != other) & (one != IGNORE) & (other != IGNORE)
    mixed = OPACITY * np.array(DIFFERENT) + (1 - OPACITY) * result[different]
    result[different] = np.rint(mixed).astype(np.uint8)
    result[_outline(one)] = FIRST
    result[_outline(other)] = SECOND
    return result


def _outline(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the pixels whose right or lower neighbour is of another class."""
    found = np.zeros(mask.shape, bool)
    found[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    found[:-1] |= mask[:-1] != mask[1:]
    return found
