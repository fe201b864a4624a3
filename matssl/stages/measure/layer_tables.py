"""Rows of the tables of layers and cracks: by layer, by crack, by specimen, and in short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matssl.measure import intervals
from matssl.measure.cracks import Crack, per_area, per_length
from matssl.measure.field import Field, averaged, together
from matssl.measure.layers import Layer
from matssl.measure.units import Unit


@dataclass(frozen=True)
class Found:
    """A layer of a field without its pixels; lengths in px."""

    field: Field
    kind: int
    number: int
    layer: Layer


@dataclass(frozen=True)
class FoundCrack:
    """A crack of a field: of which layer, 0 for none."""

    field: Field
    kind: int
    layer: int
    layer_kind: int
    crack: Crack


@dataclass(frozen=True)
class LayerTables:
    """What was found on all fields, in one unit.

    Attributes:
        names: of all classes.
        unit: of the lengths.
        fields: all of them.
        layers: found on them.
        cracks: found on them.
        looked_for: whether a class was taken for cracks.
    """

    names: Sequence[str]
    unit: Unit
    fields: Sequence[Field]
    layers: Sequence[Found]
    cracks: Sequence[FoundCrack]
    looked_for: bool

    def head(self, what: str) -> str:
        """Return the head of a column of lengths."""
        return f"{what} ({self.unit.name})"

    def rows(self) -> list[dict[str, object]]:
        """Return a row a layer, and one a field for cracks in none of its layers."""
        rows = []
        for field in self.fields:
            for found in (one for one in self.layers if one.field is field):
                rows.append(self._row(found))
            loose = [one for one in self.cracks if one.field is field and not one.layer]
            if loose:
                start: dict[str, object] = {"image": field.name, "specimen": field.specimen}
                start |= {"class": self.names[loose[0].kind], "layer": None}
                length = sum(one.crack.length for one in loose)
                rows.append(
                    {
                        **start,
                        "cracks": len(loose),
                        self.head("crack length"): self.unit.of(length, field.pixel_size),
                        **per_area([(length, field.pixel_size)], [field]),
                    }
                )
        return rows

    def _row(self, found: Found) -> dict[str, object]:
        """Return a layer with its cracks."""
        field, layer = found.field, found.layer
        size = field.pixel_size
        own = [one.crack for one in self.cracks if _is_of(one, found)]
        row: dict[str, object] = {"image": field.name, "specimen": field.specimen}
        row |= {"class": self.names[found.kind], "layer": found.number}
        least, most = float(layer.thickness.min()), float(layer.thickness.max())
        for name, value in (
            ("mean", layer.mean),
            ("SD", layer.std),
            ("min", least),
            ("max", most),
        ):
            row[self.head(f"thickness {name}")] = self.unit.of(value, size)
        sides = ("left", "right") if layer.upright else ("upper", "lower")
        row["edges"] = f"{sides[0]}, {sides[1]}"
        for place, rough in zip(("upper or left", "lower or right"), layer.roughness, strict=True):
            row[self.head(f"roughness Ra {place} edge")] = self.unit.of(rough.ra, size)
            row[self.head(f"roughness Rq {place} edge")] = self.unit.of(rough.rq, size)
        row["angle (deg)"] = layer.angle
        row["form"] = "curved" if layer.curved else "straight"
        row[self.head("measured length")] = self.unit.of(layer.length, size)
        row |= {"normals": len(layer.thickness), "leaving the field": layer.outside}
        row |= {"without layer": layer.broken, "cracks": len(own)}
        length = sum(crack.length for crack in own)
        row[self.head("crack length")] = self.unit.of(length, size)
        row["crack length per layer length"] = length / layer.length
        row |= per_length(len(own), layer.length, size)
        return row

    def crack_rows(self) -> list[dict[str, object]]:
        """Return a row a crack."""
        rows = []
        for number, one in enumerate(self.cracks, 1):
            crack, size = one.crack, one.field.pixel_size
            row: dict[str, object] = {"image": one.field.name, "specimen": one.field.specimen}
            row |= {"id": number, "class": self.names[one.kind]}
            row["in layer"] = f"{self.names[one.layer_kind]} {one.layer}" if one.layer else None
            row |= {"x (px)": crack.x, "y (px)": crack.y}
            for name, value in (
                ("length", crack.length),
                ("mean width", crack.width),
                ("largest width", crack.widest),
            ):
                row[self.head(name)] = self.unit.of(value, size)
            row |= {"angle (deg)": crack.angle, "free ends": crack.tips}
            rows.append(row | {"touches edge": int(crack.edge)})
        return rows

    def of_specimen(self, specimen: str) -> list[dict[str, object]]:
        """Return a row a class of layers, and one a class of cracks that lie in none."""
        rows: list[dict[str, object]] = []
        mine = [one for one in self.layers if one.field.specimen == specimen]
        for kind in sorted({one.kind for one in mine}):
            for number in sorted({one.number for one in mine if one.kind == kind}):
                own = [one for one in mine if (one.kind, one.number) == (kind, number)]
                rows.append(self._specimen_row(specimen, kind, number, own))
        loose = [one for one in self.cracks if one.field.specimen == specimen and not one.layer]
        for kind in sorted({one.kind for one in loose}):
            cracks = [one for one in loose if one.kind == kind]
            fields = [field for field in self.fields if field.specimen == specimen]
            total = sum(self.unit.of(one.crack.length, one.field.pixel_size) for one in cracks)
            row: dict[str, object] = {"specimen": specimen, "class": self.names[kind]}
            sequences = [field.sequence for field in fields]
            row |= {"layer fields": len(together(fields, sequences)), "cracks": len(cracks)}
            row[self.head("crack length")] = total
            sized = [(one.crack.length, one.field.pixel_size) for one in cracks]
            rows.append(row | per_area(sized, fields))
        return rows

    def _specimen_row(
        self, specimen: str, kind: int, number: int, own: Sequence[Found]
    ) -> dict[str, object]:
        name = self.names[kind] if number == 1 else f"{self.names[kind]} ({number})"
        lengths = [self.unit.of(one.layer.mean, one.field.pixel_size) for one in own]
        mean = intervals.mean_of_fields(averaged(lengths, [one.field.sequence for one in own]))
        row: dict[str, object] = {"specimen": specimen, "class": name, "layer fields": mean.fields}
        row[self.head("thickness mean")] = mean.mean
        row[self.head("thickness half width 95 %")] = mean.half_width
        row[self.head("thickness SD between fields")] = mean.std
        for title, value in (
            ("thickness SD along the layer", [one.layer.std for one in own]),
            ("roughness Rq upper or left edge", [one.layer.roughness[0].rq for one in own]),
            ("roughness Rq lower or right edge", [one.layer.roughness[1].rq for one in own]),
        ):
            sized = [
                self.unit.of(v, one.field.pixel_size) for v, one in zip(value, own, strict=True)
            ]
            row[self.head(title)] = float(np.sqrt(np.mean(np.square(sized))))
        least = [
            self.unit.of(float(one.layer.thickness.min()), one.field.pixel_size) for one in own
        ]
        most = [self.unit.of(float(one.layer.thickness.max()), one.field.pixel_size) for one in own]
        row[self.head("thickness min")], row[self.head("thickness max")] = min(least), max(most)
        if self.looked_for:
            cracks = [c for c in self.cracks if any(_is_of(c, one) for one in own)]
            length = sum(self.unit.of(one.layer.length, one.field.pixel_size) for one in own)
            cracked = sum(self.unit.of(c.crack.length, c.field.pixel_size) for c in cracks)
            row |= {"cracks": len(cracks), self.head("crack length"): cracked}
            row["crack length per layer length"] = cracked / length
            pixels = sum(one.layer.length for one in own)
            scale = None if self.unit.nm is None else self.unit.nm * length / pixels
            row |= per_length(len(cracks), pixels, scale)
        return row

    def over_specimens(self, rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
        """Return the mean over specimens of each class of layers: another number than theirs.

        Args:
            rows: of the specimens.
        """
        found: list[dict[str, object]] = []
        name = self.head("thickness mean")
        for kind in dict.fromkeys(str(row["class"]) for row in rows if name in row):
            own = [row[name] for row in rows if row["class"] == kind and name in row]
            values = [value for value in own if isinstance(value, float)]
            if len(values) < 2:
                continue
            mean = intervals.mean_of_fields(values)
            row: dict[str, object] = {"specimen": f"mean of {len(values)} specimens", "class": kind}
            row |= {"layer fields": None, name: mean.mean}
            found.append(row | {self.head("thickness half width 95 %"): mean.half_width})
        return found

    def short(self, row: dict[str, object]) -> dict[str, object]:
        """Return what a page shows of a specimen."""
        mean, half = (
            row.get(self.head(f"thickness {what}")) for what in ("mean", "half width 95 %")
        )
        text = None
        if isinstance(mean, float) and isinstance(half, float):
            text = f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"
        short = {name: row[name] for name in ("specimen", "class")} | {
            "fields": row["layer fields"]
        }
        short[self.head("thickness")] = text
        kept = ("thickness SD along", "thickness min", "thickness max", "roughness")
        short |= {name: value for name, value in row.items() if name.startswith(kept)}
        told = ("cracks", "crack length per")
        return short | {name: value for name, value in row.items() if name.startswith(told)}


def _is_of(crack: FoundCrack, found: Found) -> bool:
    own = (crack.layer, crack.layer_kind) == (found.number, found.kind)
    return crack.field is found.field and own
