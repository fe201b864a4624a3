"""Area fractions of several images: by specimen, and over specimens with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matssl.measure.field import Field
from matssl.measure.intervals import Fraction, phase_fraction


@dataclass(frozen=True)
class Errors:
    """Predicted minus true area fraction of a class, over images.

    Attributes:
        mean: of the differences.
        mean_absolute: of their sizes.
    """

    mean: float
    mean_absolute: float


def by_specimen(fields: Sequence[Field], values: Sequence[float]) -> list[float]:
    """Return the mean of each specimen: images of one are no independent fields.

    Args:
        fields: in the order in which specimens come.
        values: one per field.
    """
    specimens: dict[str, list[float]] = {}
    for field, value in zip(fields, values, strict=True):
        specimens.setdefault(field.specimen, []).append(value)
    return [float(np.mean(own)) for own in specimens.values()]


def over_specimens(fields: Sequence[Field]) -> list[Fraction]:
    """Return the area fraction of each class over the specimens, with its interval."""
    return [phase_fraction(by_specimen(fields, column)) for column in _columns(fields)]


def errors(predicted: Sequence[Field], truth: Sequence[Field]) -> list[Errors]:
    """Return how far predicted fractions of each class lie off the true ones.

    Args:
        predicted: one per image.
        truth: of the same images in the same order.
    """
    found = []
    for own, true in zip(_columns(predicted), _columns(truth), strict=True):
        difference = np.array(own) - np.array(true)
        absolute = float(np.nanmean(np.abs(difference)))
        found.append(Errors(float(np.nanmean(difference)), absolute))
    return found


def _columns(fields: Sequence[Field]) -> list[list[float]]:
    """Return the fractions of each class, one list a class with one entry a field."""
    return np.stack([field.fractions for field in fields]).T.tolist()
