"""Rows of the tables of a measurement, and the words beside them."""

from __future__ import annotations

from collections.abc import Sequence

from matssl.core.tables import percent
from matssl.measure.field import Field
from matssl.measure.intervals import MIN_FIELDS, Fraction

FRACTION_NOTE = (
    "Mean over specimens (images, where each is one) and half width of its 95 % interval (ASTM "
    f"E562); no interval below {MIN_FIELDS} of them."
)


def fraction_cells(field: Field, names: Sequence[str], what: str = "") -> dict[str, float]:
    """Return the area fractions of a field by column: the name of each class, after ``what``."""
    start = f"{what} " if what else ""
    return {f"{start}{n}": v for n, v in zip(names, field.fractions.tolist(), strict=True)}


def percent_cells(field: Field, names: Sequence[str]) -> dict[str, str]:
    """Return the area fractions of a field in per cent, for a page."""
    return {f"{n} %": percent(v) for n, v in zip(names, field.fractions.tolist(), strict=True)}


def fraction_text(fraction: Fraction, digits: int = 1) -> str:
    """Return a fraction in per cent with the half width of its interval, where it has one."""
    return percent(fraction.mean, fraction.half_width, digits)
