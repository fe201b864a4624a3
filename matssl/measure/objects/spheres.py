"""Sizes of spheres from those of their sections (Saltykov 1958), 12 classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Classes and the factor between the diameters of two neighbours.
CLASSES, FACTOR = 12, 10**-0.1


@dataclass(frozen=True)
class Spheres:
    """Spheres by classes of diameter, the largest first; every array is float64 (CLASSES,).

    Attributes:
        diameter: upper end of the class.
        sections: per area, N_A.
        spheres: per volume, N_V; a negative one says that the assumption or the number of sections
            does not carry the class, and is no error to be hidden.
        smaller: how many sections are smaller than the smallest class and in none.
    """

    diameter: Floats
    sections: Floats
    spheres: Floats
    smaller: int


def coefficients(classes: int = CLASSES) -> Floats:
    """Return what N_A of a class, of the next larger one and so on count in N_V times diameter.

    A random plane that meets a sphere of diameter D cuts a circle between d1 and d2 with the
    probability (sqrt(D^2 - d1^2) - sqrt(D^2 - d2^2)) / D. Spheres of a class have its upper end as
    diameter, so that the probabilities depend on the distance of the classes alone; the triangular
    system is solved once. The first are 1.6461, -0.4561, -0.1162 (Underwood 1970, chapter 5).
    """
    edges = np.sqrt(1 - FACTOR ** (2 * np.arange(classes + 1)))
    probability = np.diff(edges)
    solved = np.zeros(classes)
    solved[0] = 1 / probability[0]
    for place in range(1, classes):
        solved[place] = -(probability[1 : place + 1] @ solved[place - 1 :: -1]) / probability[0]
    return solved


def spheres(diameter: Floats, weight: Floats, area: float) -> Spheres | None:
    """Return the spheres whose sections have these diameters.

    Args:
        diameter: of the equal circle of each section, (N,).
        weight: how many sections each stands for (Miles and Lantuéjoul), (N,); 0 at an edge.
        area: of all fields, in the square of the diameters' unit.

    Returns:
        None without a section inside a field.
    """
    inside = weight > 0
    if not inside.any() or area <= 0:
        return None
    largest = float(diameter[inside].max())
    ends: Floats = largest * FACTOR ** np.arange(CLASSES, dtype=np.float64)
    place = np.floor(-10 * np.log10(diameter[inside] / largest) + 1e-9).astype(int)
    known = place < CLASSES
    sections = np.bincount(place[known], weight[inside][known], CLASSES) / area
    solved = coefficients()
    found = np.array([solved[: i + 1] @ sections[i::-1] for i in range(CLASSES)]) / ends
    return Spheres(ends, sections, found, int(np.count_nonzero(~known)))


def mean_diameter(found: Spheres) -> float:
    """Return the mean diameter of the spheres by number, NaN where their number is not positive."""
    number = float(found.spheres.sum())
    return float(found.spheres @ found.diameter) / number if number > 0 else math.nan
