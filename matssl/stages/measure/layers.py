"""Layers and cracks: thickness along the normal, roughness of the edges, cracks per length."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.measure import intervals, layers, units
from matssl.measure.cracks import Crack, find_cracks
from matssl.measure.field import Field, Masked, together
from matssl.measure.units import Unit
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.layer_tables import Found, FoundCrack, LayerTables
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
class Seen:
    """What one field shows.

    Attributes:
        field: it.
        layers: in it.
        cracks: in it.
        dropped: parts that are too short for a crack.
        thin: classes that were taken for thin, as no earlier field is known to show them as layers.
        by_shape: those of them that are cracks.
        layered: classes that are layers here.
        drawn: whether there is a picture.
    """

    field: Field
    layers: list[Found] = dataclasses.field(default_factory=list)
    cracks: list[FoundCrack] = dataclasses.field(default_factory=list)
    dropped: int = 0
    thin: set[int] = dataclasses.field(default_factory=set)
    by_shape: set[int] = dataclasses.field(default_factory=set)
    layered: set[int] = dataclasses.field(default_factory=set)
    drawn: bool = False


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
        # Classes that cross a field somewhere: in none are their parts cracks by shape alone.
        self.layered: set[int] = set()

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Measured where a class is called a layer, an oxide, a crack or the like."""
        return any(CRACK.search(name) or LAYER.search(name) for name in names)

    def look(self, one: Masked, draft: Path) -> Seen:
        """Measure the layers and the cracks of a field, and draw them."""
        known = one.mask < len(self.names)
        kinds = [i for i in self.chosen or range(len(self.names)) if i not in self.named]
        # --class chooses layers; cracks of any class cut through these.
        seen = Seen(one.field)
        cracked = self.named or self._thin(seen, one.mask, known)
        crack_mask = np.isin(one.mask, cracked)
        shortest = self._shortest(one.field)
        parts, drawn = [], []
        for kind in kinds:
            if kind in cracked:
                continue
            band = layers.with_cracks(one.mask == kind, crack_mask)
            for number, (layer, part) in enumerate(layers.find_layers(band, known), 1):
                seen.layers.append(Found(one.field, kind, number, layer))
                seen.layered.add(kind)
                parts.append((kind, number, part))
                drawn.append((layer.first, layer.second))
        paths, dropped = [], 0
        for kind in cracked:
            found, short = find_cracks(one.mask == kind, shortest)
            dropped += short
            for crack, _ in found:
                owner = _owner(crack, parts)
                paths.append(crack.paths)
                seen.cracks.append(FoundCrack(one.field, kind, owner[1], owner[0], crack))
        return replace(seen, dropped=dropped, drawn=self._draw(one, draft, drawn, paths))

    def take(self, found: Seen, draft: Path, place: Path) -> bool:
        """Keep the layers and cracks of a field, unless one before showed that a crack is none."""
        if found.thin & self.layered:
            return False
        self.fields.append(found.field)
        self.layers += found.layers
        self.cracks += found.cracks
        self.dropped += found.dropped
        self.by_shape |= found.by_shape
        self.layered |= found.layered
        if found.drawn:
            path = self.picture_of(found.field, draft, place)
            self.pictures.append((path, found.field.name))
        return True

    def _thin(
        self, seen: Seen, mask: NDArray[np.uint8], known: NDArray[np.bool_]
    ) -> tuple[int, ...]:
        """Return the classes whose parts are thin and no layer: cracks without the name."""
        thin: list[int] = []
        for kind in range(len(self.names)):
            own = mask == kind
            share = int(np.count_nonzero(own)) / max(1, int(np.count_nonzero(known)))
            if kind in self.layered or not 0 < share <= SPARSE:
                continue
            if layers.find_layers(own, known):
                continue
            found, _ = find_cracks(own)
            lengths = [crack.length for crack, _ in found]
            widths = [crack.width for crack, _ in found if crack.length]
            if widths and np.mean(lengths) >= SLENDER * np.average(
                widths, weights=[v for v in lengths if v]
            ):
                thin.append(kind)
        # Parts of a layer that cracks cut through are as thin as these.
        for kind in thin:
            others = np.isin(mask, [other for other in thin if other != kind])
            if layers.find_layers(layers.with_cracks(mask == kind, others), known):
                seen.layered.add(kind)
        own_cracks = tuple(kind for kind in thin if kind not in seen.layered)
        seen.thin.update(thin)
        seen.by_shape.update(own_cracks)
        return own_cracks

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
        path: Path,
        edges: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
        cracks: Sequence[Sequence[NDArray[np.float64]]],
    ) -> bool:
        """Draw what there is to draw; return whether there is."""
        if not edges and not cracks:
            return False
        from matssl.pictures import layers as pictures

        path.parent.mkdir(parents=True, exist_ok=True)
        grey = one.picture() if one.picture is not None else None
        if grey is not None and grey.shape[:2] != one.mask.shape:
            grey = None
        height, width = one.mask.shape
        pictures.overlay(grey, (height, width), edges, cracks, path, one.field.pixel_size)
        return True

    def result(self) -> Measured:
        """Return layers and cracks by field and by specimen."""
        # A later field may have shown that a class is a layer.
        wrong = self.by_shape & self.layered
        self.by_shape -= wrong
        self.cracks = [one for one in self.cracks if one.kind not in wrong]
        lengths = [(found.layer.mean, found.field) for found in self.layers]
        lengths = lengths or [(one.crack.length, one.field) for one in self.cracks]
        lengths = lengths or [(1.0, field) for field in self.fields]
        if any(field.pixel_size is None for field in self.fields):
            unit = units.PIXELS
        else:
            unit = units.common([v for v, _ in lengths], [f.pixel_size for _, f in lengths])
        looked_for = bool(self.named or self.by_shape)
        tables = LayerTables(self.names, unit, self.fields, self.layers, self.cracks, looked_for)
        specimens = [
            row
            for name in dict.fromkeys(field.specimen for field in self.fields)
            for row in tables.of_specimen(name)
        ]
        means = tables.over_specimens(specimens)
        mean = tables.head("thickness mean")
        headline = [
            (
                f"{tables.short(row)[tables.head('thickness')]} {unit.name}",
                f"{row['class']}: thickness, {row['specimen']}",
            )
            for row in (means or specimens)[:3]
            if row.get(mean) is not None
        ]
        return Measured(
            RULE,
            {self.name: tables.rows(), "cracks": tables.crack_rows()},
            specimens,
            {
                "unit": unit.name,
                "specimens": specimens,
                "over specimens": means,
                "layer classes": sorted({self.names[one.kind] for one in self.layers}),
                "crack classes": [self.names[i] for i in (*self.named, *sorted(self.by_shape))],
            },
            headline,
            [tables.short(row) for row in (*specimens, *means)],
            self._notes(unit),
            lambda folder: self._pictures(folder, unit),
        )

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
                f"{counted(self.dropped, 'part')} shorter than --min_crack "
                f"{self.settings.min_crack} left out."
            )
        notes += self._left_out(classes)
        of: dict[str, list[str]] = {}
        for one in self.layers:
            of.setdefault(one.field.specimen, []).append(one.field.sequence)
        if any(len(together(own, own)) < intervals.MIN_FIELDS for own in of.values()):
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
            name = found.field.name if found.number == 1 else f"{found.field.name} {found.number}"
            scale = unit.of(1.0, size)
            lines.append((name, layer.place * scale, layer.thickness * scale))
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


def _owner(crack: Crack, parts: Sequence[tuple[int, int, NDArray[np.bool_]]]) -> tuple[int, int]:
    """Return class and number of the layer that holds most of a crack, (0, 0) for none."""
    points = np.rint(np.concatenate(crack.paths)).astype(int)
    for kind, number, part in parts:
        rows = np.clip(points[:, 1], 0, part.shape[0] - 1)
        columns = np.clip(points[:, 0], 0, part.shape[1] - 1)
        if part[rows, columns].mean() >= 0.5:
            return kind, number
    return 0, 0
