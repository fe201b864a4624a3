"""Rows of the tables of a measurement, and the words beside them."""

from __future__ import annotations

from collections.abc import Sequence

from matssl.core.tables import percent
from matssl.measure.field import Field
from matssl.measure.intervals import MIN_FIELDS, MIN_SHARES, Fraction

FRACTION_NOTE = (
    "Area fraction (ASTM E1245): mean over specimens (images, where each is one; fields, where all "
    f"are of one specimen) with its 95 % interval; none below {MIN_FIELDS} specimens or "
    f"{MIN_SHARES} fields. python -m matssl.tools.measure lists each specimen."
)


def fraction_cells(field: Field, names: Sequence[str], what: str = "") -> dict[str, float]:
    """Return the area fractions of a field by column: the name of each class, after ``what``."""
    start = f"{what} " if what else ""
    return {f"{start}{n}": v for n, v in zip(names, field.fractions.tolist(), strict=True)}


def percent_cells(field: Field, names: Sequence[str]) -> dict[str, str]:
    """Return the area fractions of a field in per cent, for a page."""
    return {f"{n} %": percent(v) for n, v in zip(names, field.fractions.tolist(), strict=True)}


def fraction_text(fraction: Fraction, digits: int = 1) -> str:
    """Return a fraction in per cent with its interval, where it has one.

    With the half width where the interval is symmetric, else with both ends.
    """
    if fraction.scale in ("none", "t"):
        return percent(fraction.mean, fraction.half_width, digits)
    low, high = (percent(end, digits=digits) for end in (fraction.low, fraction.high))
    return f"{percent(fraction.mean, digits=digits)} ({low} to {high})"
