"""Rows of grain size: a field, a specimen, a grain; units in the names of columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matssl.core.tables import Row
from matssl.measure.grains import spread, standards
from matssl.measure.grains.intercept import HEYN, Hits
from matssl.measure.grains.specimens import Mean, Sized, Summary
from matssl.measure.units import Unit

MM, UM = 1e6, 1e3
# What stands in the column "class" of specimens.csv.
CLASS = "grains"
# Anisotropy index below which a direction is chance.
CLEAR = 1.1


def field_row(one: Sized, unit: Unit, scaled: bool) -> dict[str, object]:
    """Return what was measured on a field.

    Args:
        one: the field.
        unit: of lengths.
        scaled: whether some field has a pixel size, so that there are columns for G.
    """
    size, mm, pixel = one.size, one.mm, one.field.pixel_size
    counted = size.rectangle
    area = counted.area * _of_line(unit, one) ** 2
    per = 1e6 if unit.nm is None else 1.0
    row: dict[str, object] = {"image": one.field.name, "specimen": one.field.specimen}
    row |= {
        "grains inside": counted.inside,
        "grains cut by an edge": counted.cut,
        "grains at a corner": counted.corner,
        "N grains": counted.grains,
        f"field area ({_area(unit)})": area,
        f"N_A ({_per_area(unit)})": counted.grains / area * per if area else None,
        f"mean grain area ({unit.name}²)": _number(
            counted.area * _own(unit, pixel) ** 2 / counted.grains
            if counted.grains > 0
            else math.nan
        ),
    }
    if scaled:
        row |= {
            "G planimetric (ASTM E112)": _g_of_density(counted.density, mm),
            "G planimetric (ISO 643)": _g_of_density(counted.density, mm, iso=True),
        }
    row["N Jeffries circle"] = size.jeffries.grains
    if scaled:
        row["G planimetric Jeffries circle"] = _g_of_density(size.jeffries.density, mm)
    row |= {
        f"mean intercept {degrees:g}° ({unit.name})": _length(hits, unit, pixel)
        for degrees, hits in size.heyn.items()
    }
    row |= {
        f"mean intercept ({unit.name})": _number(
            _own(unit, pixel) / size.hits_per_length if size.hits_per_length else math.nan
        )
    }
    if scaled:
        row["G intercept (ASTM E112)"] = _g_of_hits(size.hits_per_length, mm)
    row |= {
        "intersections P": size.hits,
        f"P_L (1/{_line(unit)})": _number(size.hits_per_length / _of_line(unit, one)),
        "sum of intercepts / line length": size.check,
    }
    for name, hits in (("Hilliard circle", size.hilliard), ("Abrams circles", size.abrams)):
        row[f"mean intercept {name} ({unit.name})"] = _length(hits, unit, pixel)
        if scaled:
            row[f"G intercept {name}"] = _g_of_hits(hits.per_length, mm)
    row |= _shape(size.rose.anisotropy, size.rose.degrees)
    row |= {
        "intercept 0° over 90°": _ratio(size.lines[0.0], size.lines[90.0]),
        f"S_V = 2 P_L ({_line(unit)}²/{_line(unit)}³)": _number(
            2 * size.hits_per_length / _of_line(unit, one)
        ),
        "share drawn as boundary": size.shared,
        "fragments dropped": size.fragments,
        "gaps closed": size.closed,
    }
    bare = one.open or size
    row["N grains without closing gaps"] = bare.rectangle.grains
    if scaled:
        row["G planimetric without closing gaps"] = _g_of_density(bare.rectangle.density, mm)
        row["G intercept without closing gaps"] = _g_of_hits(bare.hits_per_length, mm)
    return row


def specimen_row(one: Summary, unit: Unit) -> dict[str, object]:
    """Return the grain size of a specimen with intervals.

    Args:
        one: the specimen.
        unit: of lengths.
    """
    row: dict[str, object] = {"specimen": one.specimen, "class": CLASS, "fields": one.n}
    row["N grains"] = one.grains
    row |= _interval(one.density, f"N_A ({_per_area(unit)})", _million(unit))
    row["%RA of N_A"] = _number(one.density.relative)
    if one.scaled:
        row |= _interval(one.planimetric(), "G planimetric (ASTM E112)")
        row["G planimetric (ISO 643)"] = _number(one.planimetric(iso=True).value)
    length = length_of(one, unit)
    row |= {
        f"mean intercept {degrees:g}° ({unit.name})": _number(one.directions[degrees] * length)
        for degrees in HEYN
    }
    row |= _interval(one.hits.length, f"mean intercept ({unit.name})", length)
    row["%RA of P_L"] = _number(one.hits.relative)
    if one.scaled:
        row |= _interval(one.intercept(), "G intercept (ASTM E112)")
        row |= {
            "G planimetric Jeffries circle": _number(standards.from_density(one.jeffries.value)),
            "G intercept Hilliard circle": _number(standards.from_hits(one.hilliard.value)),
            "G intercept Abrams circles": _number(standards.from_hits(one.abrams.value)),
            "G planimetric without closing gaps": _number(standards.from_density(one.open_density)),
            "G intercept without closing gaps": _number(standards.from_hits(one.open_hits)),
        }
    row |= _shape(one.rose.anisotropy, one.rose.degrees)
    for share in (0.1, 0.5, 0.9):
        area = spread.quantile(one.sizes, share)
        row[f"grain ECD D{100 * share:.0f} ({unit.name})"] = _number(ecd(area) * length)
    row["largest grain (numbers of G coarser)"] = one.spread.largest
    return row


def page_row(one: Summary, unit: Unit) -> dict[str, object]:
    """Return what a page shows of a specimen."""
    length = length_of(one, unit)
    clear = one.rose.anisotropy is None or one.rose.anisotropy >= CLEAR
    row: dict[str, object] = {"specimen": one.specimen, "fields": one.n}
    row["grains"] = _rounded(one.grains, 1)
    if one.scaled:
        row["G planimetric"] = _text(one.planimetric(), 2)
    row |= {f"N_A ({_per_area(unit)})": _text(one.density, None, _million(unit))}
    row["%RA"] = _rounded(one.density.relative, 1)
    if one.scaled:
        row["G intercept"] = _text(one.intercept(), 2)
    row |= {
        f"mean intercept ({unit.name})": _text(one.hits.length, 2, length),
        "anisotropy": _rounded(one.rose.anisotropy, 2),
        "elongated along (°)": _rounded(one.rose.degrees, 0) if clear else None,
    }
    return row


def grain_rows(fields: Sequence[Sized], unit: Unit) -> list[Row]:
    """Return a row a grain: area, diameter of the circle of equal area, whether it is cut."""
    rows: list[Row] = []
    for one in fields:
        sizes, own = one.size.sizes, _own(unit, one.field.pixel_size)
        for number, (area, cut, weight) in enumerate(
            zip(sizes.areas.tolist(), sizes.cut.tolist(), sizes.weights.tolist(), strict=True), 1
        ):
            rows.append(
                {
                    "image": one.field.name,
                    "specimen": one.field.specimen,
                    "grain": number,
                    f"area ({unit.name}²)": area * own**2,
                    f"ECD ({unit.name})": ecd(area) * own,
                    "cut by an edge": int(cut),
                    "weight": weight,
                }
            )
    return rows


def ecd(area: float) -> float:
    """Return the diameter of the circle of an area."""
    return 2 * math.sqrt(area / math.pi)


def length_of(one: Summary, unit: Unit) -> float:
    """Return what a length of a summary is multiplied with to be in a unit."""
    return MM / unit.nm if one.scaled and unit.nm is not None else 1.0


def _own(unit: Unit, pixel: float | None) -> float:
    """Return a pixel in the unit of lengths."""
    return unit.of(1.0, pixel)


def _of_line(unit: Unit, one: Sized) -> float:
    """Return a pixel in the unit of test lines, or 1 where lengths are in pixels."""
    return one.mm * _per_mm(unit) if unit.nm is not None and one.mm is not None else 1.0


def _per_mm(unit: Unit) -> float:
    """Return how many units of test lines are a mm: of grains in nm µm, else mm."""
    return 1e3 if unit.nm is not None and unit.nm < UM else 1.0


def _line(unit: Unit) -> str:
    return "px" if unit.nm is None else "µm" if unit.nm < UM else "mm"


def _area(unit: Unit) -> str:
    return f"{_line(unit)}²"


def _per_area(unit: Unit) -> str:
    return "1/Mpx" if unit.nm is None else f"1/{_area(unit)}"


def _million(unit: Unit) -> float:
    """Return what a density per mm², or per px², is multiplied with for tables."""
    return 1e6 if unit.nm is None else 1 / _per_mm(unit) ** 2


def _length(hits: Hits, unit: Unit, pixel: float | None) -> float | None:
    return _number(hits.intercept * _own(unit, pixel))


def _g_of_density(per_pixel: float, mm: float | None, iso: bool = False) -> float | None:
    if mm is None or not per_pixel > 0:
        return None
    change = standards.iso_from_density if iso else standards.from_density
    return change(per_pixel / mm**2)


def _g_of_hits(per_pixel: float, mm: float | None) -> float | None:
    return standards.from_hits(per_pixel / mm) if mm is not None and per_pixel > 0 else None


def _ratio(one: Hits, other: Hits) -> float | None:
    return _number(one.intercept / other.intercept)


def _shape(anisotropy: float | None, degrees: float | None) -> dict[str, object]:
    return {"anisotropy index": anisotropy, "direction of elongation (°)": degrees}


def _interval(found: Mean, name: str, factor: float = 1.0) -> dict[str, object]:
    plain, _, unit = name.partition(" (")
    behind = f" ({unit}" if unit else ""
    return {
        name: _number(found.value * factor),
        f"{plain} low{behind}": _number(found.low * factor),
        f"{plain} high{behind}": _number(found.high * factor),
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rounded(value: float | None, digits: int) -> str | None:
    if value is None or not math.isfinite(value):
        return None
    return f"{value:.{digits}f}"


def _text(found: Mean, digits: int | None, factor: float = 1.0) -> str | None:
    """Return a mean with its interval: 8.03 (7.81 to 8.24); None takes four figures of it."""
    if not math.isfinite(found.value):
        return None
    if digits is None:
        size = abs(found.value * factor)
        digits = min(12, max(1, 3 - math.floor(math.log10(size)))) if size else 1
    value, low, high = (f"{v * factor:.{digits}f}" for v in (found.value, found.low, found.high))
    if math.isnan(found.low):
        # The lower end of a density may be 0, which has no G and no mean length.
        return value if math.isnan(found.high) else f"{value} (up to {high})"
    return f"{value} (from {low})" if math.isnan(found.high) else f"{value} ({low} to {high})"
