"""From boundary masks, label images or phases to grains: a number for each pixel of the field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import label

from matssl.measure.grains.gaps import links
from matssl.measure.grains.vertices import sharpened

# Parts below are fragments between thin lines and no grains, in pixels.
SMALLEST = 5


@dataclass(frozen=True)
class Network:
    """The grains of a field.

    Attributes:
        labels: number of each pixel's grain from 1 on, int32 (H, W); 0 where it counts nowhere.
        boundary: pixels that were drawn as boundary, or had no number, and were shared out.
        closed: gaps of the boundaries that were closed.
        fragments: parts below ``SMALLEST`` pixels that were dropped: they are no grains.
    """

    labels: NDArray[np.int32]
    boundary: NDArray[np.bool_]
    closed: int = 0
    fragments: int = 0

    @property
    def grains(self) -> int:
        """How many there are, cut ones as well."""
        return int(self.labels.max(initial=0))

    @property
    def shared(self) -> float:
        """Share of the counted pixels that were shared out."""
        counted = int((self.labels > 0).sum())
        return float((self.boundary & (self.labels > 0)).sum() / counted) if counted else 0.0


def from_boundaries(
    phases: NDArray[np.uint8],
    drawn: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    close_gaps: int = 0,
) -> Network:
    """Return the grains between drawn boundaries.

    Grains are the 4-connected parts of what is no boundary, so that a line of pixels that meet at
    corners parts them; where two phases meet without a line, their border parts them too. Boundary
    pixels go to the nearest grain, which is where the skeleton of the line runs; near points where
    three grains meet, the borders are carried on straight.

    Args:
        phases: class of each pixel, (H, W).
        drawn: pixels of boundaries, (H, W).
        counted: pixels that count.
        close_gaps: widest gap in pixels that is closed.
    """
    drawn = drawn & counted
    added, closed = links(drawn, close_gaps) if close_gaps else (np.zeros_like(drawn), 0)
    lines = drawn | (added & counted)
    open_ = np.where(lines | ~counted, -1, phases.astype(np.int16))
    return _shared(_connected(open_), counted, closed)


def from_phases(phases: NDArray[np.uint8], counted: NDArray[np.bool_]) -> Network:
    """Return the 4-connected parts of each phase as grains: their borders are the boundaries.

    Args:
        phases: class of each pixel, (H, W).
        counted: pixels that count.
    """
    whole = np.where(counted, phases.astype(np.int16), -1)
    return _shared(_connected(whole), counted)


def from_labels(numbers: NDArray[np.int32], counted: NDArray[np.bool_]) -> Network:
    """Return the grains of a label image; pixels without a number go to the nearest grain.

    A number below ``SMALLEST`` pixels at the edge is what the field shows of a grain, not a
    fragment between lines.

    Args:
        numbers: of the grains, 0 for none, (H, W).
        counted: pixels that count.
    """
    parts = np.where(counted, numbers, 0).astype(np.int64)
    if not parts.size:
        return _shared(parts, counted)
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    return _shared(parts, counted, whole=edge)


def window(counted: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Return rows and columns of the smallest rectangle that holds all pixels that count."""
    rows, columns = np.flatnonzero(counted.any(axis=1)), np.flatnonzero(counted.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _connected(phases: NDArray[np.int16]) -> NDArray[np.int64]:
    """Return the numbers of the parts of equal class whose pixels meet at sides; 0 for class -1."""
    parts = np.zeros(phases.shape, np.int64)
    if parts.size:
        parts = label(phases, connectivity=1, background=-1)
    return parts


def _shared(
    parts: NDArray[np.int64],
    counted: NDArray[np.bool_],
    closed: int = 0,
    whole: Sequence[int] | NDArray[np.int64] = (),
) -> Network:
    """Return parts without fragments, numbered from 1 on, with every counted pixel shared out.

    Args:
        parts: number of each pixel's part, 0 for none.
        counted: pixels that count.
        closed: gaps that were closed.
        whole: numbers of parts that are no fragments, however small.
    """
    values, places, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    kept = (values > 0) & ((sizes >= SMALLEST) | np.isin(values, whole))
    fragments = int(((values > 0) & ~kept).sum())
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    labels = numbers[places.reshape(parts.shape)]
    band = labels == 0
    if not kept.any():
        return Network(labels, band & counted, closed, fragments)
    if (band & counted).any():
        far, nearest = ndimage.distance_transform_edt(band, return_indices=True)
        labels = labels[tuple(nearest)]
        labels = np.where(counted, labels, 0)
        labels = sharpened(labels, band & counted, far)
    return Network(labels.astype(np.int32), band & counted, closed, fragments)
