"""Points, lines and areas of a field (ASTM E1245): densities, free path, boundary per volume."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DIAGONAL = math.sqrt(2)


@dataclass(frozen=True)
class Lines:
    """What test lines through all pixels of a field meet, along rows, columns, both diagonals.

    Attributes:
        crossings: of the outline of the objects in each direction, float64 (4,).
        length: of the lines in each direction in pixels, float64 (4,).
    """

    crossings: NDArray[np.float64]
    length: NDArray[np.float64]

    @property
    def per_length(self) -> float:
        """P_L, crossings per length of line, the mean over the four directions."""
        known = self.length > 0
        if not known.any():
            return math.nan
        return float((self.crossings[known] / self.length[known]).mean())


def lines(inside: NDArray[np.bool_], unknown: NDArray[np.bool_]) -> Lines:
    """Return what test lines meet; neither edges of the field nor gaps in it are crossings.

    Args:
        inside: pixels of the objects (H, W).
        unknown: pixels that count nowhere (H, W).
    """
    all_, less, more = slice(None), slice(None, -1), slice(1, None)
    pairs = [
        ((all_, less), (all_, more), 1.0),
        ((less, all_), (more, all_), 1.0),
        ((less, less), (more, more), DIAGONAL),
        ((less, more), (more, less), DIAGONAL),
    ]
    found, length = np.zeros(4), np.zeros(4)
    for number, (first, second, step) in enumerate(pairs):
        known = ~(unknown[first] | unknown[second])
        found[number] = np.count_nonzero((inside[first] != inside[second]) & known)
        length[number] = step * np.count_nonzero(known)
    return Lines(found, length)


def surface_density(per_length: float) -> float:
    """Return S_V = 2 P_L, boundary per volume (Saltykov; Smith and Guttman 1953).

    It holds where boundaries have no preferred direction, or sections are cut at random.
    """
    return 2 * per_length


def mean_free_path(share: float, per_length: float) -> float | None:
    """Return (1 - A_A) / N_L, the mean distance between objects along a line (ASTM E1245).

    Args:
        share: area fraction of the objects A_A.
        per_length: crossings P_L; a line meets N_L = P_L / 2 objects.
    """
    return 2 * (1 - share) / per_length if per_length > 0 else None
