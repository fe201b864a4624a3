"""Layers and cracks: thickness along the normal, roughness of the edges, cracks per length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.measure import intervals, layers, units
from matssl.measure.cracks import Crack, find_cracks, per_area, per_length
from matssl.measure.field import Field, Masked
from matssl.measure.units import Unit
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.settings import MeasureSettings

CRACK = re.compile(r"crack|riss|fissur|fractur|spalt", re.IGNORECASE)
LAYER = re.compile(
    r"layer|coat|oxid|film|scale|schicht|\btgo\b|\bebc\b|\btbc\b|band", re.IGNORECASE
)
# Parts this many times longer than wide, on at most this share of the field, are thin.
SLENDER, SPARSE = 5.0, 0.15
RULE = (
    "Layer: a connected band that crosses the field with an edge on both sides. Thickness: "
    "distance of both edges along the normal of the layer, at every pixel of its length; the "
    "normal is that of the mean line of the layer, or of a curve where it bends more than it is "
    "rough. Roughness Ra and Rq: of each edge about its own mean line (ISO 21920-2, no filter: "
    "waviness is in it). Cracks and pores inside a layer belong to its thickness. Cracks: parts "
    "joined also at corners, length of the smoothed middle line."
)


@dataclass(frozen=True)
class Found:
    """A layer of a field without its pixels; lengths in px."""

    field: Field
    kind: int
    number: int
    layer: layers.Layer


@dataclass(frozen=True)
class FoundCrack:
    """A crack of a field: of which layer, 0 for none."""

    field: Field
    kind: int
    layer: int
    layer_kind: int
    crack: Crack


class Layers(Kind):
    """Layers and cracks of each field."""

    name: ClassVar[str] = "layers"

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.fields: list[Field] = []
        self.layers: list[Found] = []
        self.cracks: list[FoundCrack] = []
        self.pictures: list[tuple[Path, str]] = []
        self.dropped = 0
        self.shortest = settings.shortest_crack
        named = [i for i, name in enumerate(names) if CRACK.search(name)]
        self.named = tuple(named)
        self.by_shape: set[int] = set()

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Measured where a class is called a layer, an oxide, a crack or the like."""
        return any(CRACK.search(name) or LAYER.search(name) for name in names)

    def add(self, one: Masked, place: Path) -> None:
        """Measure the layers and the cracks of a field, and draw them."""
        known = one.mask < len(self.names)
        kinds = [i for i in self.chosen or range(len(self.names)) if i not in self.named]
        cracked = self.named or self._thin(one.mask, known, kinds)
        crack_mask = np.isin(one.mask, cracked)
        shortest = self._shortest(one.field)
        self.fields.append(one.field)
        parts, drawn = [], []
        for kind in kinds:
            if kind in cracked:
                continue
            band = layers.with_cracks(one.mask == kind, crack_mask)
            for number, (layer, part) in enumerate(layers.find_layers(band, known), 1):
                self.layers.append(Found(one.field, kind, number, layer))
                parts.append((kind, number, part))
                drawn.append((layer.first, layer.second))
        paths = []
        for kind in cracked:
            found, short = find_cracks(one.mask == kind, shortest)
            self.dropped += short
            for crack, _ in found:
                owner = _owner(crack, parts)
                paths.append(crack.paths)
                self.cracks.append(FoundCrack(one.field, kind, owner[1], owner[0], crack))
        self._draw(one, place, drawn, paths)

    def _thin(
        self, mask: NDArray[np.uint8], known: NDArray[np.bool_], kinds: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the classes whose parts are thin and no layer: cracks without the name."""
        thin = []
        for kind in kinds:
            own = mask == kind
            share = int(np.count_nonzero(own)) / max(1, int(np.count_nonzero(known)))
            if not 0 < share <= SPARSE or layers.find_layers(own, known):
                continue
            found, _ = find_cracks(own)
            lengths = [crack.length for crack, _ in found]
            widths = [crack.width for crack, _ in found if crack.length]
            if widths and np.mean(lengths) >= SLENDER * np.average(
                widths, weights=[v for v in lengths if v]
            ):
                thin.append(kind)
        self.by_shape |= set(thin)
        return tuple(thin)

    def _shortest(self, field: Field) -> float:
        """Return the length below which a part is no crack, in px of a field."""
        value, nm = self.shortest
        if nm is None:
            return value
        if field.pixel_size is None:
            raise UserError(
                f"--min_crack {self.settings.min_crack} needs a pixel size, and {field.name} has "
                "none; give --pixel_size, or --min_crack in px"
            )
        return nm / field.pixel_size

    def _draw(
        self,
        one: Masked,
        place: Path,
        edges: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
        cracks: Sequence[Sequence[NDArray[np.float64]]],
    ) -> None:
        if not edges and not cracks:
            return
        from matssl.pictures import layers as pictures

        stem = Path(one.field.name).stem
        drawn = {path.name for path, _ in self.pictures}
        # Images of two folders may have one name.
        if f"{stem}_layers.png" in drawn:
            stem = f"{stem}_{len(self.fields)}"
        path = place / f"{stem}_layers.png"
        grey = one.picture() if one.picture is not None else None
        if grey is not None and grey.shape[:2] != one.mask.shape:
            grey = None
        height, width = one.mask.shape
        pictures.overlay(grey, (height, width), edges, cracks, path)
        self.pictures.append((path, one.field.name))

    def result(self) -> Measured:
        """Return layers and cracks by field and by specimen."""
        lengths = [(found.layer.mean, found.field) for found in self.layers]
        lengths = lengths or [(one.crack.length, one.field) for one in self.cracks]
        lengths = lengths or [(1.0, field) for field in self.fields]
        if any(field.pixel_size is None for field in self.fields):
            unit = units.PIXELS
        else:
            unit = units.common([v for v, _ in lengths], [f.pixel_size for _, f in lengths])
        rows = self._rows(unit)
        specimens = [
            row
            for name in dict.fromkeys(field.specimen for field in self.fields)
            for row in self._of_specimen(name, unit)
        ]
        headline = [
            (f"{row[_head(unit, 'thickness mean')]:.4g} {unit.name}", f"{row['class']} thickness")
            for row in specimens[:3]
            if row.get(_head(unit, "thickness mean")) is not None
        ]
        return Measured(
            RULE,
            {self.name: rows, "cracks": self._crack_rows(unit)},
            specimens,
            {
                "unit": unit.name,
                "specimens": specimens,
                "layer classes": sorted({self.names[one.kind] for one in self.layers}),
                "crack classes": [self.names[i] for i in (*self.named, *sorted(self.by_shape))],
            },
            headline,
            specimens,
            self._notes(unit),
            lambda folder: self._pictures(folder, unit),
        )

    def _rows(self, unit: Unit) -> list[dict[str, object]]:
        """Return a row a layer, and one a field for cracks in none of its layers."""
        rows = []
        for field in self.fields:
            for found in (one for one in self.layers if one.field is field):
                rows.append(self._row(found, unit))
            loose = [one for one in self.cracks if one.field is field and not one.layer]
            if loose:
                start: dict[str, object] = {"image": field.name, "specimen": field.specimen}
                start |= {"class": self.names[loose[0].kind], "layer": None}
                length = sum(one.crack.length for one in loose)
                rows.append(
                    {
                        **start,
                        "cracks": len(loose),
                        _head(unit, "crack length"): unit.of(length, field.pixel_size),
                        **per_area([(length, field.pixel_size)], [field]),
                    }
                )
        return rows

    def _row(self, found: Found, unit: Unit) -> dict[str, object]:
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
            row[_head(unit, f"thickness {name}")] = unit.of(value, size)
        sides = ("left", "right") if layer.upright else ("upper", "lower")
        row["edges"] = f"{sides[0]}, {sides[1]}"
        for place, rough in zip(("upper or left", "lower or right"), layer.roughness, strict=True):
            row[_head(unit, f"roughness Ra {place} edge")] = unit.of(rough.ra, size)
            row[_head(unit, f"roughness Rq {place} edge")] = unit.of(rough.rq, size)
        row["angle (deg)"] = layer.angle
        row["form"] = "curved" if layer.curved else "straight"
        row[_head(unit, "measured length")] = unit.of(layer.length, size)
        row |= {"normals": len(layer.thickness), "leaving the field": layer.outside}
        row |= {"without layer": layer.broken, "cracks": len(own)}
        length = sum(crack.length for crack in own)
        row[_head(unit, "crack length")] = unit.of(length, size)
        row["crack length per layer length"] = length / layer.length
        row |= per_length(len(own), layer.length, size)
        return row

    def _crack_rows(self, unit: Unit) -> list[dict[str, object]]:
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
                row[_head(unit, name)] = unit.of(value, size)
            row |= {"angle (deg)": crack.angle, "free ends": crack.tips}
            rows.append(row | {"touches_edge": int(crack.edge)})
        return rows

    def _of_specimen(self, specimen: str, unit: Unit) -> list[dict[str, object]]:
        """Return a row a class of layers, and one a class of cracks that lie in none."""
        rows: list[dict[str, object]] = []
        mine = [one for one in self.layers if one.field.specimen == specimen]
        for kind in sorted({one.kind for one in mine}):
            for number in sorted({one.number for one in mine if one.kind == kind}):
                own = [one for one in mine if (one.kind, one.number) == (kind, number)]
                rows.append(self._specimen_row(specimen, kind, number, own, unit))
        loose = [one for one in self.cracks if one.field.specimen == specimen and not one.layer]
        for kind in sorted({one.kind for one in loose}):
            cracks = [one for one in loose if one.kind == kind]
            fields = [field for field in self.fields if field.specimen == specimen]
            total = sum(unit.of(one.crack.length, one.field.pixel_size) for one in cracks)
            row: dict[str, object] = {"specimen": specimen, "class": self.names[kind]}
            row |= {"layer fields": len(fields), "cracks": len(cracks)}
            row[_head(unit, "crack length")] = total
            sized = [(one.crack.length, one.field.pixel_size) for one in cracks]
            rows.append(row | per_area(sized, fields))
        return rows

    def _specimen_row(
        self, specimen: str, kind: int, number: int, own: Sequence[Found], unit: Unit
    ) -> dict[str, object]:
        name = self.names[kind] if number == 1 else f"{self.names[kind]} ({number})"
        row: dict[str, object] = {"specimen": specimen, "class": name, "layer fields": len(own)}
        mean = intervals.mean_of_fields(
            [unit.of(one.layer.mean, one.field.pixel_size) for one in own]
        )
        row[_head(unit, "thickness mean")] = mean.mean
        row[_head(unit, "thickness half width 95 %")] = mean.half_width
        row[_head(unit, "thickness SD between fields")] = mean.std
        for title, value in (
            ("thickness SD along the layer", [one.layer.std for one in own]),
            ("roughness Rq upper or left edge", [one.layer.roughness[0].rq for one in own]),
            ("roughness Rq lower or right edge", [one.layer.roughness[1].rq for one in own]),
        ):
            sized = [unit.of(v, one.field.pixel_size) for v, one in zip(value, own, strict=True)]
            row[_head(unit, title)] = float(np.sqrt(np.mean(np.square(sized))))
        least = [unit.of(float(one.layer.thickness.min()), one.field.pixel_size) for one in own]
        most = [unit.of(float(one.layer.thickness.max()), one.field.pixel_size) for one in own]
        row[_head(unit, "thickness min")], row[_head(unit, "thickness max")] = min(least), max(most)
        if self.named or self.by_shape:
            cracks = [c for c in self.cracks if any(_is_of(c, one) for one in own)]
            length = sum(unit.of(one.layer.length, one.field.pixel_size) for one in own)
            cracked = sum(unit.of(c.crack.length, c.field.pixel_size) for c in cracks)
            row |= {"cracks": len(cracks), _head(unit, "crack length"): cracked}
            row["crack length per layer length"] = cracked / length
            pixels = sum(one.layer.length for one in own)
            scale = None if unit.nm is None else unit.nm * length / pixels
            row |= per_length(len(cracks), pixels, scale)
        return row

    def _notes(self, unit: Unit) -> list[str]:
        """Return what was taken for what, and what the numbers leave out."""
        notes = []
        classes = sorted({self.names[one.kind] for one in self.layers})
        if classes:
            notes.append(f"Taken for layers, since they cross the field: {', '.join(classes)}.")
        elif self.fields:
            notes.append(
                "No class crosses a field with an edge on both sides, so there is no thickness."
            )
        if self.named:
            told = ", ".join(self.names[i] for i in self.named)
            notes.append(
                f"Taken for cracks by their name: {told}; inside a layer they count to it."
            )
        elif self.by_shape:
            told = ", ".join(self.names[i] for i in sorted(self.by_shape))
            notes.append(
                f"Taken for cracks by their shape, thin and across no field: {told}. Name a class "
                "crack to say it."
            )
        if self.dropped:
            notes.append(
                f"{counted(self.dropped, 'part')} shorter than "
                f"{self.settings.min_crack} left out "
                "(--min_crack)."
            )
        notes += self._left_out(classes)
        short = {
            one.field.specimen
            for one in self.layers
            if sum(o.field.specimen == one.field.specimen for o in self.layers)
            < intervals.MIN_FIELDS
        }
        if short:
            notes.append(
                f"No interval of the thickness below {intervals.MIN_FIELDS} fields of a specimen: "
                "normals of one field are no independent samples."
            )
        if unit.nm is None:
            lacking = sum(field.pixel_size is None for field in self.fields)
            notes.append(
                f"Lengths in px: {counted(lacking, 'field')} without a pixel size (--pixel_size)."
            )
        return notes

    def _left_out(self, classes: Sequence[str]) -> list[str]:
        """Return what was not measured of layers: normals, fields."""
        notes = []
        outside = sum(one.layer.outside for one in self.layers)
        broken = sum(one.layer.broken for one in self.layers)
        all_ = outside + broken + sum(len(one.layer.thickness) for one in self.layers)
        if outside or broken:
            notes.append(
                f"Of {all_} normals {outside} are left out where the layer leaves the field (or "
                f"meets ignored pixels), and {broken} where it is interrupted."
            )
        there = {id(one.field) for one in self.layers}
        without = [field.name for field in self.fields if id(field) not in there]
        if classes and without:
            shown = ", ".join(without[:4]) + (" ..." if len(without) > 4 else "")
            notes.append(f"No layer crosses {counted(len(without), 'field')}: {shown}.")
        return notes

    def _pictures(self, folder: Path, unit: Unit) -> list[tuple[Path, str]]:
        """Draw the profiles; the overlays are there already."""
        from matssl.pictures import layers as pictures

        drawn = []
        lines = []
        for found in self.layers:
            size = found.field.pixel_size
            layer = found.layer
            middle = (layer.first + layer.second) / 2
            place = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(middle, axis=0).T))])
            name = found.field.name if found.number == 1 else f"{found.field.name} {found.number}"
            scale = unit.of(1.0, size)
            lines.append((name, place * scale, layer.thickness * scale))
        if lines:
            path = folder / "layer_profiles.png"
            pictures.profiles(lines, unit.name, path)
            drawn.append((path, "Thickness along the layer."))
        caption = (
            "edges blue, normals grey, thinnest place red, thickest green, middle lines of cracks "
            "yellow"
        )
        for path, name in self.pictures[:4]:
            drawn.append((path, f"{name}: {caption}."))
        return drawn


def _head(unit: Unit, what: str) -> str:
    """Return the head of a column of lengths."""
    return f"{what} ({unit.name})"


def _owner(crack: Crack, parts: Sequence[tuple[int, int, NDArray[np.bool_]]]) -> tuple[int, int]:
    """Return class and number of the layer that holds most of a crack, (0, 0) for none."""
    points = np.rint(np.concatenate(crack.paths)).astype(int)
    for kind, number, part in parts:
        rows = np.clip(points[:, 1], 0, part.shape[0] - 1)
        columns = np.clip(points[:, 0], 0, part.shape[1] - 1)
        if part[rows, columns].mean() >= 0.5:
            return kind, number
    return 0, 0


def _is_of(crack: FoundCrack, found: Found) -> bool:
    own = (crack.layer, crack.layer_kind) == (found.number, found.kind)
    return crack.field is found.field and own
