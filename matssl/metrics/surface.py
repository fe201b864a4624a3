"""Hausdorff distance of two masks, at the 95th percentile: how far borders lie apart.

Of each border pixel of one mask the Euclidean distance to the nearest border pixel of the other is
taken; of the distances from the truth to the prediction and of those back the 95th percentile, and
of both the larger (Huttenlocher, Klanderman, Rucklidge, "Comparing images using the Hausdorff
distance", IEEE PAMI 15, 1993, with a rank instead of the maximum).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE

PERCENT = 95
# Rows at once, and the distance that is exact within them; farther pixels take the whole field.
STRIP, REACH = 1024, 256


def hausdorff_95(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    kind: int,
    percent: float = PERCENT,
) -> float:
    """Return the distance in pixels; NaN where one of the two has no border.

    The edge of the field is no border, nor is that of ignored pixels (as for the boundary F1).

    Args:
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        prediction: class indices, same shape.
        kind: the class whose borders are compared.
        percent: of the distances.
    """
    known = truth != IGNORE
    own = border(truth == kind, known)
    guess = border((prediction == kind) & known, known)
    if not own.any() or not guess.any():
        return float("nan")
    there, back = (_percentile(one, other, percent) for one, other in ((own, guess), (guess, own)))
    return max(there, back)


def border(inside: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the pixels of a mask that have a known neighbour of four outside it, uint8 (H, W).

    Args:
        inside: bool (H, W).
        known: pixels that count, bool (H, W).
    """
    found = np.zeros(inside.shape, np.uint8)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        meets = (inside[here] != inside[there]) & known[here] & known[there]
        found[here] |= meets & inside[here]
        found[there] |= meets & inside[there]
    return found


def _percentile(start: NDArray[np.uint8], goal: NDArray[np.uint8], percent: float) -> float:
    """Return a percentile of the distances from the pixels of one border to another."""
    squares = np.zeros(REACH**2 + 1, np.int64)
    beyond = 0
    for top in range(0, len(start), STRIP):
        first, last = max(0, top - REACH), top + STRIP + REACH
        rows = slice(top - first, top - first + STRIP)
        part = goal[first:last]
        asked = start[first:last][rows] > 0
        if not part.any():
            beyond += int(asked.sum())
            continue
        found = _squares(part, rows, asked)
        near = found <= REACH**2
        squares += np.bincount(found[near], minlength=len(squares))
        beyond += int((~near).sum())
    total = int(squares.sum()) + beyond
    rank = percent / 100 * (total - 1)
    if rank > squares.sum() - 1:
        # So far apart that strips do not tell: once more with the whole field at a time.
        whole = np.sqrt(_squares(goal, slice(None), start > 0).astype(np.float64))
        return float(np.percentile(whole, percent))
    upto = np.cumsum(squares)
    below, above = (
        float(np.sqrt(np.searchsorted(upto, place, side="right")))
        for place in (int(np.floor(rank)), int(np.ceil(rank)))
    )
    return below + (above - below) * (rank - np.floor(rank))


def _squares(goal: NDArray[np.uint8], rows: slice, asked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the squared distances of some pixels to a border, whole numbers.

    Args:
        goal: 1 on the border, uint8 (H, W).
        rows: of the map that are asked for.
        asked: the pixels of these rows.
    """
    distance = cv2.distanceTransform(1 - goal, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.rint(np.square(distance[rows][asked], dtype=np.float64)).astype(np.int64)
