"""Flags of the measurement of grain size; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core.flags import flag


@dataclass(frozen=True, init=False, repr=False, eq=False)
class GrainSettings:
    """Flags of ``--what grains``."""

    close_gaps: int = flag(
        5,
        "grains",
        "widest gap of a grain boundary in pixels that is closed; 0 closes none; G without closing "
        "is written beside",
        low=0,
        high=100,
        first=True,
    )
    intercept_spacing: int = flag(
        1,
        "grains",
        "distance of the test lines in pixels; 1 takes every row, column and diagonal",
        low=1,
        high=10_000,
    )
