"""Grain size after ASTM E112 and ISO 643: by field, by specimen, with intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.tables import Row
from matssl.core.wording import counted
from matssl.measure import units
from matssl.measure.field import Masked, averaged
from matssl.measure.grains import circles, network, sizing, specimens, standards, tables
from matssl.measure.grains.network import Network
from matssl.measure.grains.specimens import Sized, Summary
from matssl.measure.intervals import Sample, sample
from matssl.stages.measure import compare
from matssl.stages.measure.kind import Kind, Measured
from matssl.stages.measure.settings import MeasureSettings

BOUNDARY = re.compile(
    r"boundar|korngrenz|(?<![a-z])gbs?(?![a-z])|grain[ _-]?border|joints? de grain", re.I
)
TWIN = re.compile(r"twin|zwilling", re.I)
GRAIN = re.compile(r"^(grains?|k[oö]rn(er)?|crystals?|crystallites?)$", re.I)
# Names that say nothing of what a class is.
UNNAMED = re.compile(r"^(background|foreground|(class|value|phase)?[ _-]?\d+|#[0-9a-f]{6})$", re.I)
# Boundaries that cover more of a field are wide, or something else was taken for them.
WIDE = 0.4
# Overlays in the report; all of them lie in the folder of pictures.
SHOWN = 4
RULE = (
    "{grains} A pixel drawn as boundary goes to its nearest grain; where three grains meet, their "
    "borders are carried on straight. {gaps} Parts below 5 px are no grains. Planimetric (ASTM "
    "E112, Saltykov's rectangle): grains inside, half of those that an edge of the field cuts, a "
    "quarter a corner; G = 3.321928 log10 N_A − 2.954 with N_A per mm² (ISO 643: − 3). Intercept "
    "(ASTM E112, Heyn): changes of grain along lines at 0°, 45°, 90° and 135°, {spacing}, tangents "
    "as 1, intercepts shorter than a pixel added; P_L is the mean of the four directions; "
    "G = −6.643856 log10 l − 3.288 with l in mm. Circles (Hilliard: one; Abrams: three, 79.58 : "
    "53.05 : 26.53) are put down at {places} x {places} places of the field, the largest "
    "{largest:g} of its shorter side. Anisotropy index and direction of elongation "
    "(counter-clockwise from x, y up): axes of "
    "the ellipse through the intercepts of eight directions. Intervals: 95 %, Student's t over the "
    "fields of a specimen, on N_A and P_L, their ends carried over to G. Jeffries' circle "
    "stands beside for comparison: it counts about 0.9 grain too many (G +0.03 at 39 grains), the "
    "rectangle with a quarter a corner does not."
)
DIFFER = (
    "G planimetric and G intercept are two numbers, each right by its own rule: for grains of "
    "unequal size the intercept one is larger by about 0.3 to 0.4. Compare like with like."
)


class Grains(Kind):
    """Grain size number, mean intercept, anisotropy."""

    name: ClassVar[str] = "grains"
    compares: ClassVar[bool] = True

    def __init__(
        self, settings: MeasureSettings, names: Sequence[str], chosen: Sequence[int]
    ) -> None:
        super().__init__(settings, names, chosen)
        self.boundaries: tuple[int, ...] = ()
        self.labelled = False
        self.fields: list[Sized] = []
        self.stretched = 0
        self.drawn: list[tuple[Path, str, str]] = []

    @classmethod
    def suits(cls, names: Sequence[str], labelled: bool) -> bool:
        """Grains are measured where a class is a boundary by its name."""
        return any(_is_boundary(name) for name in names)

    def ready(self, labelled: bool) -> None:
        """Decide what parts grains: numbers, a class, or the borders of phases.

        Raises:
            UserError: no name says which class is the boundary.
        """
        self.labelled = labelled
        if labelled:
            return
        asked = self.chosen or range(len(self.names))
        found = [i for i in asked if _is_boundary(self.names[i])]
        if not found and len(self.chosen) == 1:
            found = list(self.chosen)
        others = [i for i, name in enumerate(self.names) if not GRAIN.match(name)]
        if not found and len(self.names) == 2 and len(others) == 1:
            found = others
        if not found and (self.chosen or all(UNNAMED.match(name) for name in self.names)):
            raise UserError(
                f"which class is the grain boundary? None of {', '.join(self.names)} is called so; "
                "name it with --class, or call it boundary in classes.yaml"
            )
        self.boundaries = tuple(found)

    def look(self, one: Masked, draft: Path) -> tuple[Sized, bool]:
        """Measure the grains of a field, and draw them."""
        counted_ = one.mask != IGNORE
        window = network.window(counted_)
        own = counted_[window]
        found = self._network(one, window, own, self.settings.close_gaps)
        spacing = self.settings.intercept_spacing
        size = sizing.measured(found, spacing)
        bare = None
        if found.closed:
            bare = sizing.counted(self._network(one, window, own, 0), spacing)
        self._draw(one, found, window, draft)
        return Sized(one.field, size, bare), one.aspect != 1

    def take(self, found: tuple[Sized, bool], draft: Path, place: Path) -> bool:
        """Keep the grains of a field."""
        own, stretched = found
        self.fields.append(own)
        self.stretched += stretched
        path = self.picture_of(own.field, draft, place)
        self.drawn.append((path, own.field.specimen, own.field.name))
        return True

    def _network(
        self, one: Masked, window: tuple[slice, slice], own: NDArray[np.bool_], close_gaps: int
    ) -> Network:
        if self.labelled:
            assert one.labels is not None
            return network.from_labels(one.labels[window], own)
        phases = self._without_twins(one.mask[window])
        if not self.boundaries:
            return network.from_phases(phases, own)
        drawn = np.isin(phases, self.boundaries)
        return network.from_boundaries(phases, drawn, own, close_gaps)

    def _without_twins(self, phases: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return classes with twin boundaries as part of the grain that they run through."""
        twins = [i for i, name in enumerate(self.names) if TWIN.search(name)]
        drawn = np.isin(phases, [i for i in twins if i not in self.boundaries])
        rest = drawn | np.isin(phases, [*self.boundaries, IGNORE])
        if not drawn.any() or rest.all():
            return phases
        nearest = ndimage.distance_transform_edt(rest, return_distances=False, return_indices=True)
        return np.where(drawn, phases[tuple(nearest)], phases)

    def _draw(self, one: Masked, found: Network, window: tuple[slice, slice], path: Path) -> None:
        from matssl.pictures import grains as pictures

        path.parent.mkdir(parents=True, exist_ok=True)
        grey = None if one.picture is None else one.picture()[window]
        radius = circles.largest(*found.labels.shape)
        radii = [radius * share for share in circles.ABRAMS]
        size = one.field.pixel_size
        pictures.overlay(grey, found.labels, found.boundary, radii, path, size)

    def result(self) -> Measured:
        """Return the tables, what they say in short, and what to doubt."""
        lengths = [_middle(one) for one in self.fields]
        unit = units.common(lengths, [one.field.pixel_size for one in self.fields])
        scaled = any(one.field.pixel_size is not None for one in self.fields)
        parts = []
        for specimen in dict.fromkeys(one.field.specimen for one in self.fields):
            own = [one for one in self.fields if one.field.specimen == specimen]
            parts.append(specimens.summarise(specimen, own, unit.nm is not None))
        said = parts if len(parts) < 2 else [*parts, specimens.together(parts)]
        rows = [tables.specimen_row(one, unit) for one in said]
        written: dict[str, Sequence[Row]] = {
            self.name: [tables.field_row(one, unit, scaled) for one in self.fields],
            "grain_sizes": tables.grain_rows(self.fields, unit),
        }
        # G of a field with a scale and of one without are no two numbers of one kind.
        alike = scaled == (unit.nm is not None)
        samples = self._samples() if alike else {}
        compared = compare.rows(self.settings.compare, samples, "G")
        if compared:
            written["grains_compared"] = compared
        summary = {
            "unit of length": unit.name,
            "compared": compared,
            "boundary": self._taken(),
            "specimens": rows,
            "rose (mean intercept by direction)": {
                one.specimen: {
                    f"{d:.1f}": length * tables.length_of(one, unit)
                    for d, length in one.directions.items()
                    if math.isfinite(length)
                }
                for one in said
            },
        }
        return Measured(
            f"{self._rule()} {compare.RULE}" if compared else self._rule(),
            written,
            rows,
            summary,
            _figures(said[-1], unit),
            [tables.page_row(one, unit) for one in said],
            [*self._notes(parts, said), *_differences(compared)],
            lambda folder: self._pictures(folder, said, unit),
        )

    def _samples(self) -> dict[str, dict[str, Sample]]:
        """Return the mean of G over the fields of each specimen, by method.

        Differences of G need no scale: fields without a pixel size are taken for equally enlarged.
        """
        found: dict[str, dict[str, Sample]] = {"G planimetric": {}, "G intercept": {}}
        for specimen in dict.fromkeys(one.field.specimen for one in self.fields):
            own = [one for one in self.fields if one.field.specimen == specimen]
            scales = [one.mm or 1.0 for one in own]
            both = (
                [
                    standards.from_density(one.size.rectangle.density / mm**2)
                    for one, mm in zip(own, scales, strict=True)
                ],
                [
                    standards.from_hits(one.size.hits_per_length / mm)
                    for one, mm in zip(own, scales, strict=True)
                ],
            )
            sequences = [one.field.sequence for one in own]
            for name, values in zip(found, both, strict=True):
                kept = [v for v in averaged(values, sequences) if not math.isnan(v)]
                if kept:
                    found[name][specimen] = sample(kept)
        return found

    def _taken(self) -> str:
        if self.labelled:
            return "numbers of the label images"
        if not self.boundaries:
            return f"borders between {', '.join(self.names)}"
        return f"class {self._named()}"

    def _named(self) -> str:
        return " and ".join(self.names[i] for i in self.boundaries)

    def _rule(self) -> str:
        spacing = self.settings.intercept_spacing
        far = "one through every pixel" if spacing == 1 else f"{spacing} px apart"
        if self.labelled:
            grains = "Grains are the numbers of the label images, one each."
        elif not self.boundaries:
            grains = (
                "No class is called a boundary: grains are the 4-connected parts of each of "
                f"{', '.join(self.names)}, and the borders between these their boundaries."
            )
        else:
            grains = (
                f"Grains are the 4-connected parts between the class {self._named()}, "
                "which was taken for the boundary."
            )
        gaps = ""
        if self.boundaries:
            widest = self.settings.close_gaps
            gaps = (
                f"Boundaries are thinned and gaps of up to {widest} px ahead of an end are closed "
                "(--close_gaps)."
                if widest
                else "Gaps in boundaries are left open (--close_gaps 0)."
            )
        told = RULE.format(
            grains=grains,
            gaps=gaps,
            spacing=far,
            places=circles.PLACES,
            largest=circles.LARGEST,
        )
        return told.replace("  ", " ")

    def _notes(self, parts: Sequence[Summary], said: Sequence[Summary]) -> list[str]:
        notes = self._scales() + self._gaps(said[-1]) + self._shares()
        if self.predicted:
            notes.append(
                "A model drew the boundaries: its own errors are not in the intervals; hold it "
                "against fields with drawn boundaries."
            )
        if self.stretched:
            notes.append(
                f"Pixels are not square in {counted(self.stretched, 'field')}: their rows or "
                "columns were repeated until they are, so that lengths hold in every direction."
            )
        fragments = sum(one.size.fragments for one in self.fields)
        if fragments:
            notes.append(
                f"{counted(fragments, 'part')} below 5 px dropped: fragments between lines, or "
                "corners of grains that an edge cuts off."
            )
        for one in parts:
            notes += [f"{one.specimen}: {doubt}" for doubt in _doubts(one)]
        return [*notes, DIFFER] if any(one.scaled for one in said) else notes

    def _scales(self) -> list[str]:
        missing = [one.field.name for one in self.fields if one.field.pixel_size is None]
        if len(missing) == len(self.fields):
            return [
                "No pixel size: lengths are in pixels, and there is no grain size number G, which "
                "needs mm; give --pixel_size."
            ]
        if missing:
            return [
                f"Warning: {counted(len(missing), 'field')} without a pixel size ({missing[0]}) "
                "and others with one: lengths are in pixels, G stands for single fields alone, and "
                "no specimens are compared; give --pixel_size, or a specimens.csv with pixel_size."
            ]
        return []

    def _gaps(self, last: Summary) -> list[str]:
        closed = sum(one.size.closed for one in self.fields)
        if not self.boundaries or not self.settings.close_gaps:
            return []
        if not closed:
            return [f"No gap of up to {self.settings.close_gaps} px in the boundaries."]
        told = f"{counted(closed, 'gap')} of the boundaries closed (--close_gaps "
        told += f"{self.settings.close_gaps}): "
        if math.isnan(last.intercept().value) or not last.open_density:
            return [f"{told[:-2]}."]
        if not last.scaled:
            change = last.density.value / last.open_density
            return [f"{told}{100 * (change - 1):.1f} % more grains than without closing."]
        return [
            f"{told}G planimetric {last.planimetric().value:.2f}, without closing "
            f"{standards.from_density(last.open_density):.2f}; G intercept "
            f"{last.intercept().value:.2f}, without closing "
            f"{standards.from_hits(last.open_hits):.2f}."
        ]

    def _shares(self) -> list[str]:
        wide = [one for one in self.fields if one.size.shared > WIDE]
        if not wide:
            return []
        what = "carries no number" if self.labelled else "is boundary"
        return [
            f"Warning: in {counted(len(wide), 'field')} more than {100 * WIDE:.0f} % of the area "
            f"{what} ({wide[0].field.name}: {100 * wide[0].size.shared:.0f} %) and was shared out "
            "to grains: are these grains, and is this their boundary (--class)?"
        ]

    def _pictures(
        self, folder: Path, said: Sequence[Summary], unit: units.Unit
    ) -> list[tuple[Path, str]]:
        from matssl.pictures import grains as pictures

        drawn = []
        parts = said[:-1] if len(said) > 1 else said
        rose = folder / "intercept_rose.png"
        pictures.rose(
            {
                one.specimen: (
                    {d: v * tables.length_of(one, unit) for d, v in one.directions.items()},
                    one.rose.degrees,
                    one.rose.anisotropy,
                )
                for one in parts
            },
            rose,
            unit.name,
        )
        told = "Mean intercept by direction of the test lines, and its long axis."
        if len(parts) > pictures.MOST_CURVES:
            told += f" The first {pictures.MOST_CURVES} of {len(parts)} specimens."
        drawn.append((rose, told))
        sizes = said[-1].sizes
        whole = sizes.weights > 0
        if whole.any():
            path = folder / "grain_sizes.png"
            length = tables.length_of(said[-1], unit)
            diameters = 2 * np.sqrt(sizes.areas[whole] / np.pi) * length
            pictures.histogram(diameters, sizes.weights[whole], path, unit.name)
            drawn.append(
                (
                    path,
                    "Diameters of circles of equal area of the grains that lie whole in their "
                    "field, weighted for how often a field cuts them; curves are cumulative.",
                )
            )
        first = {specimen: (path, image) for path, specimen, image in reversed(self.drawn)}
        shown = list(reversed(first.values()))[:SHOWN]
        for path, image in shown:
            told = (
                f"{image}: boundaries in orange (as drawn: shaded), grains that an edge cuts in "
                "blue; some of the test lines, and Abrams' circles at one place."
            )
            if len(self.drawn) > len(shown):
                told += f" All {len(self.drawn)} fields: {path.parent}."
            drawn.append((path, told))
        return drawn


def _is_boundary(name: str) -> bool:
    return bool(BOUNDARY.search(name)) and not TWIN.search(name)


def _middle(one: Sized) -> float:
    """Return a typical length of a field in pixels."""
    return 1 / one.size.hits_per_length if one.size.hits_per_length > 0 else 1.0


def _figures(one: Summary, unit: units.Unit) -> list[tuple[str, str]]:
    row = tables.page_row(one, unit)
    figures = []
    for name in ("G planimetric", "G intercept", f"mean intercept ({unit.name})"):
        if row.get(name) is not None:
            of = "" if one.specimen != specimens.ALL else f", mean of {one.n} specimens"
            figures.append((str(row[name]), f"{name}, 95 % interval in brackets{of}"))
    return figures


def _differences(rows: Sequence[Row]) -> list[str]:
    """Return a sentence a difference of ``--compare``."""
    said = []
    for row in rows:
        low, high = row["difference low G"], row["difference high G"]
        told = f"{row['class']}: {row['second']} minus {row['first']} {row['difference G']:+.2f}"
        known = isinstance(low, float) and not math.isnan(low)
        said.append(f"{told} ({low:+.2f} to {high:+.2f})." if known else f"{told}, no interval.")
    return said


def _doubts(one: Summary) -> list[str]:
    """Return what a specimen's numbers lack, in words."""
    said = list(one.spread.words)
    if one.smallest < specimens.A_FIELD:
        few = f"{one.smallest:g} {'grain' if one.smallest == 1 else 'grains'}"
        said.append(
            f"a field with {few}; ASTM E112 wants {specimens.A_FIELD}: use a lower magnification"
        )
    if one.grains < specimens.IN_ALL:
        said.append(
            f"{one.grains:g} grains in all; {specimens.IN_ALL} are wanted: image more fields"
        )
    if one.n < 2:
        said.append("one field: no interval, since nothing tells how fields differ")
    elif one.density.low == one.density.high:
        said.append("all fields hold as many grains: an interval without width tells nothing")
    elif one.density.relative > specimens.ACCURACY:
        said.append(
            f"%RA of N_A is {one.density.relative:.1f}; ASTM E112 accepts "
            f"{specimens.ACCURACY:g}: image more fields"
        )
    return said
