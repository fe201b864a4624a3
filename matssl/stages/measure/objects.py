"""Objects of the classes: particles, pores, precipitates, bubbles; counted, sized, drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from matssl.core.arrays import Spool
from matssl.core.tables import Row
from matssl.core.wording import counted
from matssl.measure.field import Field, Masked
from matssl.measure.intervals import MIN_FIELDS
from matssl.measure.objects import found as objects
from matssl.measure.objects import sizes, spheres, summary, tables
from matssl.measure.objects.found import Found, Rules, Size
from matssl.measure.objects.parts import Parts
from matssl.measure.objects.summary import Summary
from matssl.measure.units import Unit
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.object_settings import area, depth
from matssl.stages.measure.settings import MeasureSettings

# Classes that are what lies around objects, and such as other measurements are made for.
AROUND = re.compile(r"\b(background|matrix|ferritic matrix|substrate|ground|none|void)\b", re.I)
OTHERS = re.compile(r"boundar|grain|layer|coating|oxide|crack", re.I)
# Overlays in the report; all of them lie in the folder of pictures.
SHOWN = 4
RULE = (
    "Objects are connected parts of a class (pixels that touch at a corner are connected, 8; what "
    "lies around them by edges, 4); {holes}; {touching}; the smallest has {least}. Number per area "
    "N_A: an object at an edge of its field counts half, one that holds a corner a quarter. Sizes: "
    "objects that lie whole in their field, weighted by Miles and Lantuéjoul for how often a field "
    "cuts them. ECD: diameter of the circle of equal area (number of pixels). Outlines: Crofton, "
    "four directions (straight edges come out 5 % short to 3 % long). Feret diameters on corners "
    "of pixels. Aspect ratio and orientation from second moments; angles counter-clockwise from x, "
    "y up; no shape below an ECD of 10 px; circularity is 4 pi A / P² of the outer outline and may "
    "exceed 1. Nearest neighbours by centres; empty where the edge is nearer. x and y from the "
    "upper left corner. S_V = 2 P_L, mean free path and the values of ASTM E1245 come from lines "
    "through all pixels in four directions; S_V holds where outlines have no preferred direction "
    "(isotropic) or sections are cut at random. Intervals: 95 %, bootstrap of specimens and of "
    "their fields, from {few} of them on."
)


class Objects(Kind):
    """Number, size and shape of the objects of each class."""

    name: ClassVar[str] = "objects"

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.kinds = self.chosen or _kinds(self.names)
        least = area(settings.min_area)
        given = None if settings.separation_depth is None else depth(settings.separation_depth)
        self.rules = Rules(
            Size(least.value, least.physical, f"--min_area {settings.min_area}", power=2),
            settings.fill_holes,
            settings.separate,
            None
            if given is None
            else Size(
                given.value, given.physical, f"--separation_depth {settings.separation_depth}"
            ),
        )
        self.found: list[Found] = []
        self.spool = Spool()
        self.drawn: list[tuple[Path, str, str]] = []

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Objects are measured where masks number them, or a class may be some."""
        return labelled or any(not (AROUND.search(n) or OTHERS.search(n)) for n in names)

    def check(self, one: Masked) -> None:
        """Refuse flags in units of length for fields without a pixel size."""
        for given in (self.rules.least, self.rules.depth):
            if given is not None:
                given.pixels(one.field.pixel_size, one.field.name)

    def look(self, one: Masked, draft: Path) -> tuple[Field, list[Found]]:
        """Find the objects of a field, and draw them."""
        made = list(objects.find(one, self.kinds, len(self.names), self.rules))
        draft.parent.mkdir(parents=True, exist_ok=True)
        self._draw(one, made, draft)
        return one.field, [found for found, _ in made]

    def take(self, found: tuple[Field, list[Found]], draft: Path, place: Path) -> bool:
        """Keep the objects of a field on the disk."""
        field, own = found
        self.found += [self.spool.lay(one, place) for one in own]
        self.drawn.append((self.picture_of(field, draft, place), field.specimen, field.name))
        return True

    def _draw(self, one: Masked, made: Sequence[tuple[Found, Parts]], path: Path) -> None:
        from matssl.pictures import objects as pictures

        outlined = []
        for found, own in made:
            s = found.shapes
            boxes = np.stack([s.left, s.top, s.width, s.height], axis=1).astype(np.int64)
            outlined.append(
                pictures.Outlined(
                    self.names[found.kind],
                    own.labels,
                    found.first,
                    boxes,
                    s.area,
                    found.edges.touches,
                )
            )
        grey = objects.picture(one)
        pictures.overlay(grey, outlined, path, one.field.name, one.field.pixel_size)

    def result(self) -> Measured:
        """Return the tables, what they say in short, and what to doubt."""
        unit = summary.unit_of(self.found)
        each: list[Summary] = []
        all_: list[Summary] = []
        notes: list[str] = []
        for kind in self.kinds:
            own = _by_specimen([one for one in self.found if one.kind == kind])
            specimens = list(dict.fromkeys(one.specimen for one in own))
            parts = [
                summary.summarise(name, [one for one in own if one.specimen == name], unit)
                for name in specimens
            ]
            each += parts
            together = summary.summarise(summary.ALL, own, unit)
            all_.append(together)
            notes += summary.doubts(self.names[kind], together, own)
        several = any(one.specimens > 1 for one in all_)
        said = each + (all_ if several else [])
        notes += self._few(each) + self._scales() + self._numbered()
        edges = [self._edges(one) for one in all_]
        classes = [
            row
            for together, own in zip(all_, edges, strict=True)
            for one in said
            if one.kind == together.kind and len(own[0])
            for row in tables.class_rows(one, own[0], self.names, unit)
        ]
        written: dict[str, Sequence[Row]] = {
            self.name: tables.ObjectRows(self.found, self.names, unit),
            "sizes": tables.size_rows(said, self.names, unit),
            "size_classes": classes,
            "fields_E1245": tables.field_rows(self.found, self.names, unit),
        }
        if self.settings.spheres:
            written["spheres"] = [
                row for one in said for row in tables.sphere_rows(one, self.names, unit)
            ]
            notes.append(_spheres(all_))
        rows = [tables.specimen_row(one, self.names, unit) for one in said]
        return Measured(
            self._rule(),
            written,
            rows,
            {"unit of length": unit.name, "specimens": rows, "sizes": written["sizes"]},
            [figure for one in all_ for figure in self._figures(one, unit)],
            # What stands first is seen where there are many specimens.
            [tables.page_row(one, self.names, unit) for one in (all_ if several else []) + each],
            notes,
            lambda folder: self._pictures(folder, all_, each, edges, unit),
        )

    def _rule(self) -> str:
        rules = self.rules
        given = self.settings.separation_depth or "the larger of 1 px and 10 % of its radius"
        return RULE.format(
            few=MIN_FIELDS,
            holes="holes are filled" if rules.fill else "holes are no part of them",
            touching=f"touching ones are taken apart where the smaller rises {given} above the neck"
            if rules.separate
            else "touching ones are one (--separate takes them apart)",
            least=self.settings.min_area if rules.least.physical else f"{rules.least.value:g} px",
        )

    def _few(self, each: Sequence[Summary]) -> list[str]:
        few = [one.specimen for one in each if one.fields < MIN_FIELDS]
        own = list(dict.fromkeys(few))
        if not own:
            return []
        named = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
        return [
            f"No interval for {counted(len(own), 'specimen')} of fewer than {MIN_FIELDS} fields "
            f"({named}): image more fields of each."
        ]

    def _scales(self) -> list[str]:
        known = {one.pixel_size for one in self.found}
        if known == {None}:
            return ["No pixel size: lengths are in pixels (--pixel_size)."]
        if None in known:
            without = [one.image for one in self.found if one.pixel_size is None]
            return [
                f"Warning: {without[0]} has no pixel size and others have one, so that all lengths "
                "are in pixels; give --pixel_size, or a specimens.csv with pixel_size."
            ]
        if len(known) > 1:
            told = f"{min(map(float, filter(None, known))):.4g} to {max(filter(None, known)):.4g}"
            return [f"Pixel sizes from {told} nm: each field is measured with its own."]
        return []

    def _numbered(self) -> list[str]:
        if not any(one.numbered for one in self.found):
            return []
        idle = [
            flag
            for flag, given in (
                ("--separate", self.rules.separate),
                ("--fill_holes", self.rules.fill),
            )
            if given
        ]
        told = f"; {' and '.join(idle)} did not act on them" if idle else ""
        return [f"The masks number their objects, which are taken as they are{told}."]

    def _edges(self, one: Summary) -> tuple[np.ndarray, bool]:
        """Return the edges of the classes of sizes, and whether they are logarithmic."""
        log = {"linear": False, "log": True}.get(self.settings.size_axis)
        if log is None:
            log = sizes.logarithmic(one.diameter, one.weight)
        return sizes.class_edges(one.diameter, one.weight, log), log

    def _figures(self, one: Summary, unit: Unit) -> list[tuple[str, str]]:
        found = one.by_number["mean"]
        mean, low, high = map(tables.written, (found.value, found.low, found.high))
        if mean is None:
            return []
        name, sized = self.names[one.kind], int(np.count_nonzero(one.weight))
        ends, told = ("", ", no interval") if low is None else (f" ({low} to {high})", "")
        return [
            (f"{one.objects:,}", f"{name}: objects in {one.extent}"),
            (
                f"{mean}{ends} {unit.name}",
                f"{name}: mean diameter of equal area (ECD) of {sized:,} whole objects{told}",
            ),
        ]

    def _pictures(
        self,
        folder: Path,
        all_: Sequence[Summary],
        each: Sequence[Summary],
        edges: Sequence[tuple[np.ndarray, bool]],
        unit: Unit,
    ) -> list[tuple[Path, str]]:
        from matssl.pictures import objects as pictures

        drawn = []
        for one, (own, log) in zip(all_, edges, strict=True):
            if not len(own):
                continue
            name = self.names[one.kind]
            stem = re.sub(r"[^\w-]+", "_", name)
            path = folder / f"sizes_{one.kind}_{stem}.png"
            together = pictures.Curve(one.specimen, one.diameter, one.weight)
            single = [
                pictures.Curve(s.specimen, s.diameter, s.weight)
                for s in each
                if s.kind == one.kind and (s.weight > 0).any()
            ]
            words = _words(one, unit)
            pictures.size_plot(together, single, own, path, name, unit.name, log, words)
            caption = (
                f"{name}: sizes of the objects that lie whole in their field, with their weights; "
                "bars by number, curves cumulative."
            )
            drawn.append((path, caption))
        # One field of each specimen first.
        first = {specimen: (path, image) for path, specimen, image in reversed(self.drawn)}
        shown = list(reversed(first.values()))[:SHOWN]
        for path, image in shown:
            told = f"{image}: objects with their numbers in objects.csv."
            if len(self.drawn) > len(shown):
                told += f" All {len(self.drawn)} fields: folder {path.parent.name}."
            drawn.append((path, told))
        return drawn


def _spheres(all_: Sequence[Summary]) -> str:
    """Return what the spheres assume, and what they leave out."""
    told = (
        "Saltykov spheres: assumes that all objects are spheres; a negative number says that its "
        "class does not fit that, or holds too few sections"
    )
    found = [spheres.spheres(one.diameter, one.weight, one.area) for one in all_]
    smaller = sum(one.smaller for one in found if one is not None)
    if smaller:
        told += f"; {counted(smaller, 'section')} below the smallest class left out"
    return f"{told}."


def _kinds(names: Sequence[str]) -> tuple[int, ...]:
    """Return the classes that may be objects: all but what lies around, or all."""
    own = tuple(i for i, name in enumerate(names) if not AROUND.search(name))
    return own or tuple(range(len(names)))


def _by_specimen(found: Sequence[Found]) -> list[Found]:
    """Return fields with those of one specimen behind each other."""
    order = list(dict.fromkeys(one.specimen for one in found))
    return sorted(found, key=lambda one: order.index(one.specimen))


def _words(one: Summary, unit: Unit) -> list[str]:
    """Return what the distribution says, for the side of its picture."""
    mean, written = one.by_number["mean"], tables.written
    lines = [f"n = {int(np.count_nonzero(one.weight))} of {one.objects}"]
    lines.append(f"mean {written(mean.value)} {unit.name}")
    if mean.low is not None:
        lines.append(f"  95 %: {written(mean.low)} to {written(mean.high)}")
    for name in summary.VALUES[1:]:
        lines.append(f"{name} {written(one.by_number[name].value)} {unit.name}")
    lines.append(f"D50 by area {written(one.by_area['D50'].value)} {unit.name}")
    return lines
