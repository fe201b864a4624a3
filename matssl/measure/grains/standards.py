"""Grain size numbers: what the standards make of grains per area and of mean intercepts."""

from __future__ import annotations

import math

# ASTM E112, table 2 and its equations: log2(10), 2·log2(10).
PER_DECADE, PER_DECADE_OF_LENGTH = 3.321928, 6.643856
# G = 3.321928 log10(N_A) − 2.954 and G = −6.643856 log10(l) − 3.288; ISO 643: G = log2(m) − 3.
PLANIMETRIC, INTERCEPT, ISO = -2.954, -3.288, -3.0


def from_density(per_mm2: float) -> float:
    """Return ASTM's G of grains per mm² (E112, planimetric); NaN where there are none."""
    return PER_DECADE * math.log10(per_mm2) + PLANIMETRIC if per_mm2 > 0 else math.nan


def from_area(mm2: float) -> float:
    """Return ASTM's G of a mean grain area in mm²."""
    return from_density(1 / mm2) if mm2 > 0 else math.nan


def from_intercept(mm: float) -> float:
    """Return ASTM's G of a mean lineal intercept in mm (E112); NaN where there is none."""
    return -PER_DECADE_OF_LENGTH * math.log10(mm) + INTERCEPT if mm > 0 else math.nan


def from_hits(per_mm: float) -> float:
    """Return ASTM's G of boundary intersections per mm of test line."""
    return from_intercept(1 / per_mm) if per_mm > 0 else math.nan


def iso_from_density(per_mm2: float) -> float:
    """Return ISO 643's G of grains per mm²; it lies 0.046 below ASTM's."""
    return PER_DECADE * math.log10(per_mm2) + ISO if per_mm2 > 0 else math.nan
