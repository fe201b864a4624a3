"""Rows of the tables of objects: an object, a field, a specimen, a class of sizes, spheres."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import overload

import numpy as np

from matssl.core.tables import Row
from matssl.measure.objects import neighbours, sizes, spheres, stereology
from matssl.measure.objects.found import Found
from matssl.measure.objects.shapes import Floats
from matssl.measure.objects.summary import VALUES, Estimate, Summary
from matssl.measure.units import Unit

PIXELS_PER_MEGA = 1e6
NM_PER_UM, NM_PER_MM = 1e3, 1e6


class ObjectRows(Sequence[Row]):
    """A row an object; rows are made when they are asked for, since there may be a million."""

    def __init__(self, found: Sequence[Found], names: Sequence[str], unit: Unit) -> None:
        self.found, self.names, self.unit = list(found), tuple(names), unit
        self.starts = np.cumsum([0, *(one.count for one in found)]).tolist()
        self.grey = any(one.grey is not None for one in found)
        # Rows are asked for in order: the columns of one field are held at a time.
        self._field, self._columns = -1, dict[str, list[object]]()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, place: int) -> Row: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | Sequence[Row]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError(place)
        field = bisect_right(self.starts, place) - 1
        if field != self._field:
            self._field, self._columns = field, self._of(self.found[field])
        i = place - self.starts[field]
        return {name: values[i] for name, values in self._columns.items()}

    def _of(self, one: Found) -> dict[str, list[object]]:
        """Return the columns of the objects of a field."""
        u, scale = self.unit.name, self.unit.of(1.0, one.pixel_size)
        s, e, n = one.shapes, one.edges, one.neighbours
        same = {"image": one.image, "specimen": one.specimen}
        columns: dict[str, list[object]] = {k: [v] * one.count for k, v in same.items()}
        columns["id"] = list(range(one.first, one.first + one.count))
        columns["class"] = [self.names[one.kind]] * one.count
        lengths = {"x": s.x, "y": s.y, "ECD": s.diameter, "outer perimeter": s.outer}
        lengths |= {"total perimeter": s.total, "Feret max": s.feret_max, "Feret min": s.feret_min}
        for name, values in lengths.items():
            columns[f"{name} ({u})"] = (values * scale).tolist()
            if name == "y":
                columns[f"area ({squared(u)})"] = (s.area * scale**2).tolist()
        shapes = {"Feret angle (deg)": s.feret_angle, "aspect ratio (moments)": s.aspect}
        shapes |= {"circularity": s.circularity, "solidity": s.solidity}
        shapes |= {"orientation (deg)": s.orientation}
        for name, values in shapes.items():
            columns[name] = _cells_of(np.where(s.shaped, values, np.nan))
        columns["holes"] = s.holes.astype(int).tolist()
        boxes = {"left": s.left, "top": s.top, "width": s.width, "height": s.height}
        for name, values in boxes.items():
            columns[f"bbox {name} (px)"] = values.astype(int).tolist()
        if self.grey:
            columns["mean grey"] = [None] * one.count if one.grey is None else one.grey.tolist()
        near = np.where(n.known, n.distance * scale, np.nan)
        columns[f"nearest neighbour ({u})"] = _cells_of(near)
        columns["touches edge"] = e.touches.astype(int).tolist()
        columns |= {"counts as": e.number.tolist(), "weight of size": e.weight.tolist()}
        return columns


def _cells_of(values: Floats) -> list[object]:
    return [_told(value) for value in values.tolist()]


def squared(unit: str) -> str:
    """Return the name of an area: µm², px."""
    return "px" if unit == "px" else f"{unit}²"


def density_unit(unit: Unit) -> tuple[str, float]:
    """Return per what area objects are counted, and how many squares of the unit it has."""
    if unit.nm is None:
        return "Mpx", PIXELS_PER_MEGA
    if unit.nm < NM_PER_UM:
        return "µm²", (NM_PER_UM / unit.nm) ** 2
    return "mm²", (NM_PER_MM / unit.nm) ** 2


def field_rows(found: Sequence[Found], names: Sequence[str], unit: Unit) -> list[Row]:
    """Return a row a field and class after ASTM E1245."""
    per, squares = density_unit(unit)
    u, rows = unit.name, list[Row]()
    most: dict[tuple[str, int], float] = {}
    for one in found:
        key = (one.specimen, one.kind)
        covered = float(one.shapes.area.sum()) / one.pixels if one.pixels else 0.0
        most[key] = max(most.get(key, 0.0), covered)
    for one in found:
        scale = unit.of(1.0, one.pixel_size)
        area = one.pixels * scale**2
        covered = float(one.shapes.area.sum()) * scale**2
        long = float(one.shapes.feret_max.sum()) * scale
        number, per_length = one.number, one.lines.per_length / scale
        share = covered / area if area else math.nan
        density = number / area if area else math.nan
        row: dict[str, object] = {"image": one.image, "specimen": one.specimen}
        row |= {"class": names[one.kind], f"area of field ({per})": area / squares}
        row |= {"objects": one.count, "at edge": int(one.edges.touches.sum())}
        row |= {"number (half rule)": number, f"N_A (per {per})": density * squares}
        row["A_A (%)"] = 100 * share
        row[f"L_A (1/{u})"] = long / area if area else None
        row[f"mean area ({squared(u)})"] = covered / number if number else None
        row[f"mean length ({u})"] = long / number if number else None
        row[f"N_L (1/{u})"] = per_length / 2
        row[f"mean free path ({u})"] = stereology.mean_free_path(share, per_length)
        row[f"S_V (1/{u})"] = stereology.surface_density(per_length)
        row["Clark-Evans R"] = neighbours.clark_evans(
            one.neighbours.distance, one.neighbours.weight, number / max(one.pixels, 1)
        )
        row["worst field"] = int(covered > 0 and math.isclose(share, most[one.specimen, one.kind]))
        row["dropped"] = one.dropped
        rows.append({name: _told(v) if isinstance(v, float) else v for name, v in row.items()})
    return rows


def specimen_row(one: Summary, names: Sequence[str], unit: Unit) -> dict[str, object]:
    """Return what all fields of a specimen say."""
    per, squares = density_unit(unit)
    u = unit.name
    row: dict[str, object] = {"specimen": one.specimen, "class": names[one.kind]}
    row |= {"fields": one.fields, "objects": one.objects, "objects at edge": one.at_edge}
    row |= _cells(f"N_A (per {per})", one.density, squares)
    row |= {"%RA of N_A": one.accuracy, "fields needed for 10 %RA of N_A": one.needed}
    row |= _cells("A_A of objects (%)", one.share, 100)
    number, share = one.density.value, one.share.value
    row[f"mean area ({squared(u)})"] = share / number if number and share is not None else None
    row |= _cells(f"mean ECD ({u})", one.by_number["mean"])
    for name in VALUES[1:]:
        row[f"{name} ({u})"] = one.by_number[name].value
    row[f"mean free path ({u})"] = one.free_path
    surface = None if one.per_length is None else stereology.surface_density(one.per_length)
    row[f"S_V (1/{u})"] = surface
    row |= {"Clark-Evans R": one.clark_evans, "worst field": one.worst[0]}
    row["A_A of worst field (%)"] = 100 * one.worst[1]
    return row


def page_row(one: Summary, names: Sequence[str], unit: Unit) -> dict[str, object]:
    """Return the same in short, for the screen and the page."""
    per, squares = density_unit(unit)
    u, mean = unit.name, one.by_number["mean"]
    row: dict[str, object] = {"specimen": one.specimen, "class": names[one.kind]}
    row |= {"fields": one.fields, "objects": one.objects, "at edge": one.at_edge}
    row[f"N_A (per {per})"] = written(one.density.value, squares)
    row[f"mean ECD ({u})"] = written(mean.value)
    ends = mean.low is not None and mean.high is not None
    row["95 % interval"] = f"{written(mean.low)} to {written(mean.high)}" if ends else None
    for name in VALUES[1:]:
        row[f"{name} ({u})"] = written(one.by_number[name].value)
    return row


def written(value: float | None, factor: float = 1.0) -> str | None:
    """Return a number with four digits as tables show it, 12300 and not 1.23e+04."""
    if value is None or not math.isfinite(value):
        return None
    value *= factor
    if value == 0:
        return "0"
    digits = 3 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):.{max(digits, 0)}f}"


def _cells(name: str, one: Estimate, factor: float = 1.0) -> dict[str, object]:
    ends = (one.value, one.low, one.high)
    value, low, high = (None if end is None else end * factor for end in ends)
    return {name: value, f"{name}, 95 % low": low, f"{name}, 95 % high": high}


def size_rows(summaries: Sequence[Summary], names: Sequence[str], unit: Unit) -> list[Row]:
    """Return the distributions, by number and by area, with their intervals."""
    rows: list[Row] = []
    for one in summaries:
        for weighted, values in (("number", one.by_number), ("area", one.by_area)):
            row: dict[str, object] = {"specimen": one.specimen, "class": names[one.kind]}
            row |= {"by": weighted, "fields": one.fields}
            row["sized"] = int(np.count_nonzero(one.weight))
            for name in VALUES:
                label = "mean ECD" if name == "mean" else name
                row |= _cells(f"{label} ({unit.name})", values[name])
            rows.append(row)
    return rows


def class_rows(one: Summary, edges: Floats, names: Sequence[str], unit: Unit) -> list[Row]:
    """Return the distribution of a specimen in classes, with both cumulative curves."""
    found = sizes.classes(one.diameter, one.weight, edges)
    if found is None:
        return []
    u, rows = unit.name, list[Row]()
    number, area = np.cumsum(found.by_number), np.cumsum(found.by_area)
    for i, objects in enumerate(found.objects.tolist()):
        row: dict[str, object] = {"specimen": one.specimen, "class": names[one.kind]}
        row |= {f"ECD from ({u})": float(edges[i]), f"ECD to ({u})": float(edges[i + 1])}
        row["sized"] = objects
        row |= {"by number (%)": 100 * float(found.by_number[i])}
        row |= {"cumulative by number (%)": 100 * float(number[i])}
        row |= {"by area (%)": 100 * float(found.by_area[i])}
        row |= {"cumulative by area (%)": 100 * float(area[i])}
        rows.append(row)
    return rows


def sphere_rows(one: Summary, names: Sequence[str], unit: Unit) -> list[Row]:
    """Return the Saltykov spheres of a specimen, the largest first."""
    found = spheres.spheres(one.diameter, one.weight, one.area)
    if found is None:
        return []
    per, squares = density_unit(unit)
    u, rows = unit.name, list[Row]()
    volume = "Mpx^1.5" if unit.nm is None else per.replace("²", "³")
    for place in range(spheres.CLASSES):
        end = float(found.diameter[place])
        row: dict[str, object] = {"specimen": one.specimen, "class": names[one.kind]}
        row |= {"size class": place + 1, f"sphere diameter up to ({u})": end}
        row[f"N_A of sections (per {per})"] = float(found.sections[place]) * squares
        row[f"N_V of spheres (per {volume})"] = float(found.spheres[place]) * squares**1.5
        rows.append(row)
    return rows


def _told(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
