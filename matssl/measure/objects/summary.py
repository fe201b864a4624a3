"""The objects of several fields together: densities and sizes with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from matssl.core.wording import counted
from matssl.measure import intervals, units
from matssl.measure.field import clusters, together
from matssl.measure.objects import neighbours, sizes, stereology
from matssl.measure.objects.found import Found
from matssl.measure.objects.shapes import LEAST_SHAPE, Floats
from matssl.measure.units import Unit

# Values of a distribution, by number and then by area, behind the two densities.
VALUES = ("mean", "SD", "D10", "D50", "D90")
# Name of all specimens together.
ALL = "all together"
# A part that covers so much of its field, from edge to edge, is what lies around objects.
SURROUNDS = 0.4


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; None where there is none.

    Attributes:
        value: of all fields together.
        low: lower end.
        high: upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Summary:
    """Objects of one class in the fields of one specimen, or of all of them together.

    Lengths are in the unit of the table.

    Attributes:
        specimen: its name, ALL for all together.
        kind: class index.
        fields: how many, a sequence of frames counted as one.
        pictures: how many, each frame counted.
        specimens: how many, 1 of one.
        objects: all of them, cut ones too.
        at_edge: those that touch an edge.
        density: objects per area (half rule).
        accuracy: half width of the t interval of their number per area over its mean in per cent
            (%RA of ASTM E1245); None below MIN_FIELDS fields, or of several specimens.
        needed: how many fields it takes for 10 %, in all.
        share: area of the objects per area.
        by_number: VALUES by number.
        by_area: VALUES by area.
        free_path: mean distance between objects along a line.
        per_length: crossings of outlines per length of line.
        clark_evans: mean distance of neighbours over that of points at random.
        worst: name of the field with most area of objects, and its share.
        diameter: of all objects.
        weight: of their sizes.
        area: of all fields.
    """

    specimen: str
    kind: int
    fields: int
    pictures: int
    specimens: int
    objects: int
    at_edge: int
    density: Estimate
    accuracy: float | None
    needed: int | None
    share: Estimate
    by_number: dict[str, Estimate]
    by_area: dict[str, Estimate]
    free_path: float | None
    per_length: float | None
    clark_evans: float | None
    worst: tuple[str, float]
    diameter: Floats
    weight: Floats
    area: float

    @property
    def extent(self) -> str:
        """How many fields, in words."""
        frames = f" ({self.pictures} frames and fields)" if self.pictures > self.fields else ""
        return counted(self.fields, "field") + frames


def unit_of(found: Sequence[Found]) -> Unit:
    """Return the unit of lengths of all tables: that of the mean diameters of the fields."""
    sized = [one for one in found if one.count] or list(found)
    middle = [float(one.shapes.diameter.mean()) if one.count else 1.0 for one in sized]
    unit = units.common(middle, [one.pixel_size for one in sized])
    missing = any(one.pixel_size is None for one in found)
    return units.PIXELS if missing else unit


def summarise(specimen: str, fields: Sequence[Found], unit: Unit) -> Summary:
    """Return what the fields say together; fields of one specimen must follow each other.

    Args:
        specimen: its name, or ALL.
        fields: of one class, at least one.
        unit: of lengths.
    """
    scales = [unit.of(1.0, one.pixel_size) for one in fields]
    pairs = list(zip(fields, scales, strict=True))
    diameters = [one.shapes.diameter * scale for one, scale in pairs]
    weights = [one.edges.weight for one in fields]
    areas = [one.pixels * scale**2 for one, scale in pairs]
    statistics = sizes.Resampled(
        diameters,
        weights,
        [one.number for one in fields],
        [float(one.shapes.area.sum()) * scale**2 for one, scale in pairs],
        areas,
    )
    own = list(dict.fromkeys(one.specimen for one in fields))
    # What is drawn are fields; a sequence is drawn with all its frames.
    parts = clusters([one.sequence for one in fields])
    numbers = [len({p for p, f in zip(parts, fields, strict=True) if f.specimen == n}) for n in own]
    values = statistics(np.ones(len(fields), np.int64))
    ends = intervals.redrawn(numbers, lambda drawn: statistics(drawn[parts]))
    told = [
        Estimate(_number(value), *(_number(e[i]) for e in (ends if ends is not None else ())))
        for i, value in enumerate(values)
    ]
    # Boundary per volume is a mean over area: so are its crossings per line.
    met = sum(one.lines.per_length * one.pixels * scale for one, scale in pairs if one.pixels)
    per_length = met / sum(areas) if sum(areas) else math.nan
    share = told[1].value or 0.0
    known = [one for one in fields if one.pixels]
    worst = max(known, key=_covered, default=fields[0])
    return Summary(
        specimen,
        fields[0].kind,
        sum(numbers),
        len(fields),
        len(own),
        sum(one.count for one in fields),
        sum(int(one.edges.touches.sum()) for one in fields),
        told[0],
        *_accuracy(fields, areas, len(own)),
        told[1],
        dict(zip(VALUES, told[2:7], strict=True)),
        dict(zip(VALUES, told[7:12], strict=True)),
        stereology.mean_free_path(share, per_length),
        _number(per_length),
        _clark_evans(pairs, told[0].value),
        (worst.image, _covered(worst)),
        np.concatenate(diameters),
        np.concatenate(weights),
        float(sum(areas)),
    )


def _accuracy(
    fields: Sequence[Found], areas: Sequence[float], specimens: int
) -> tuple[float | None, int | None]:
    """Return %RA of the number per area, and the fields needed for 10 %."""
    pairs = list(zip(fields, areas, strict=True))
    parts = together(pairs, [one.sequence for one in fields])
    sums = [(sum(f.number for f, _ in part), sum(area for _, area in part)) for part in parts]
    values = [number / area for number, area in sums if area]
    if specimens > 1 or not values:
        return None, None
    found = intervals.mean_of_fields(values)
    if not found.mean > 0 or math.isnan(found.half_width):
        return None, None
    return 100 * found.half_width / found.mean, intervals.fields_needed(found.mean, found.std)


def _covered(one: Found) -> float:
    return float(one.shapes.area.sum()) / one.pixels if one.pixels else 0.0


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _clark_evans(pairs: Sequence[tuple[Found, float]], density: float | None) -> float | None:
    distance = np.concatenate([one.neighbours.distance * scale for one, scale in pairs])
    weight = np.concatenate([one.neighbours.weight for one, _ in pairs])
    return neighbours.clark_evans(distance, weight, density or 0.0)


def doubts(name: str, all_: Summary, fields: Sequence[Found]) -> list[str]:
    """Return what the numbers of a class do not contain, and what to doubt, in sentences.

    Args:
        name: of the class.
        all_: all fields together.
        fields: of the class.
    """
    told = []
    dropped = sum(one.dropped for one in fields)
    if dropped:
        lost = sum(one.dropped_area for one in fields)
        kept = sum(float(one.shapes.area.sum()) for one in fields)
        parts = f"{dropped} of {dropped + all_.objects} parts smaller than --min_area"
        share = 100 * lost / (lost + kept)
        text = f"{share:.2g}" if share < 99.5 else "over 99" if kept else "100"
        told.append(f"{name}: {parts} dropped ({text} % of its area).")
    pieces = sum(one.pieces for one in fields)
    if pieces:
        told.append(
            f"{name}: {counted(pieces, 'part')} at an edge smaller than --min_area kept, as pieces "
            "of larger objects: inside there are too few small ones for so many at the edge."
        )
    split = sum(one.split for one in fields)
    if split:
        more = counted(split, "more object", "more objects")
        told.append(f"{name}: --separate made {more} than there are connected parts.")
    if not all_.objects:
        return [*told, f"{name}: no object in {all_.extent}."]
    cut = f"{name}: {all_.at_edge} of {all_.objects} objects touch an edge of their field"
    if all_.at_edge:
        told.append(f"{cut}; they count half, a quarter at a corner, and have no part in sizes.")
    beside = sum(int(one.edges.beside.sum()) for one in fields)
    if beside:
        told.append(
            f"{name}: {beside} of these lie beside pixels that count nowhere and may go on there."
        )
    if all_.at_edge == all_.objects:
        told.append(f"{name}: no object lies whole in a field, so that there are no sizes.")
    elif 2 * all_.at_edge > all_.objects:
        told.append(
            f"Warning: most objects of {name} are cut by the edges of their fields, and the few "
            "whole ones stand for many; image larger fields."
        )
    coarse = _mean_pixels(fields)
    if coarse < LEAST_SHAPE:
        told.append(
            f"Warning: the mean ECD of {name} is {coarse:.1f} px, below {LEAST_SHAPE:g} px: too "
            "coarse for sizes within a few per cent, and for shapes; image at a higher "
            "magnification."
        )
    surrounding = [one for one in fields if _surrounds(one)]
    if surrounding:
        told.append(
            f"Warning: one part of {name} covers {surrounding[0].image} from edge to edge; is it "
            "what lies around the objects? Leave it out with --class."
        )
    return told


def _mean_pixels(fields: Sequence[Found]) -> float:
    """Return the mean diameter in pixels, NaN where no object lies whole in a field."""
    weight = np.concatenate([one.edges.weight for one in fields])
    if not weight.any():
        return math.nan
    return float(
        np.average(np.concatenate([one.shapes.diameter for one in fields]), weights=weight)
    )


def _surrounds(one: Found) -> bool:
    if not one.count:
        return False
    largest = int(one.shapes.area.argmax())
    cut = bool(one.edges.touches[largest])
    return cut and float(one.shapes.area[largest]) > SURROUNDS * one.pixels
