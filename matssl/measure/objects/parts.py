"""The objects of a class: its connected parts, with or without their holes, and the small ones."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Parts:
    """Numbered objects of one class.

    Attributes:
        labels: int32 (H, W), 1 to ``count``; 0 is none of them.
        count: how many there are.
        dropped: how many were smaller than asked for.
        dropped_area: pixels of these.
        pieces: how many that are smaller were kept, as pieces of what the edge cuts.
    """

    labels: NDArray[np.int32]
    count: int
    dropped: int = 0
    dropped_area: int = 0
    pieces: int = 0


def connected(inside: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the connected parts of a class, int32 (H, W), 0 outside.

    Pixels that touch at a corner are connected (8); what lies around them is then connected by
    edges alone (4), so that no line crosses another (Rosenfeld 1970).
    """
    labels = cv2.connectedComponents(inside.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)[1]
    return np.asarray(labels, np.int32)


def filled(inside: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a class with the holes of its parts.

    A hole is what is shut in by 4-connected paths and does not reach the edge of the field. One in
    which pixels count nowhere stays: nobody knows what it is.

    Args:
        inside: pixels of the class (H, W).
        unknown: pixels that count nowhere (H, W).
    """
    number, around = cv2.connectedComponents((~inside).astype(np.uint8), connectivity=4)
    open_ = np.zeros(number, bool)
    # Number 0 is the class itself.
    open_[0] = True
    for side in (around[0], around[-1], around[:, 0], around[:, -1]):
        open_[side] = True
    open_[around[unknown]] = True
    return inside | ~open_[around]


def large_enough(
    labels: NDArray[np.int32], least: float, cut: NDArray[np.bool_], shape: tuple[int, int]
) -> Parts:
    """Return the objects of at least so many pixels, numbered anew in the order of their numbers.

    A smaller part at an edge may be a piece of a larger object, whose number would be too small
    without it. So small parts at the edge are kept where there are more than twice as many as those
    inside let expect (Miles and Lantuéjoul, with squares of their area).

    Args:
        labels: int32 (H, W), 0 for none.
        least: area in pixels; a part of one is possible where it was given in units of length.
        cut: by number, whether it touches an edge.
        shape: rows and columns of the field.
    """
    sizes = np.bincount(labels.ravel(), minlength=len(cut))
    sizes[0] = 0
    small = (sizes > 0) & (sizes < least)
    side = np.sqrt(sizes[small & ~cut])
    height, width = shape
    places = (width + side - 1) * (height + side - 1)
    inside = np.maximum((width - 1 - side) * (height - 1 - side), 1)
    expected = float((places / inside - 1).sum())
    pieces = small & cut
    if pieces.sum() <= 2 * expected:
        pieces[:] = False
    kept = ((sizes > 0) & ~small) | pieces
    numbers = np.zeros(len(sizes), np.int32)
    numbers[kept] = np.arange(1, int(kept.sum()) + 1)
    dropped = small & ~pieces
    lost, area = int(dropped.sum()), int(sizes[dropped].sum())
    return Parts(numbers[labels], int(kept.sum()), lost, area, int(pieces.sum()))
