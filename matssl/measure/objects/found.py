"""The objects of one class in one field, with all that is measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.measure.field import Masked
from matssl.measure.objects import edges, neighbours, parts, separation, shapes, stereology
from matssl.measure.objects.edges import Edges
from matssl.measure.objects.neighbours import Neighbours
from matssl.measure.objects.parts import Parts
from matssl.measure.objects.shapes import Floats, Shapes
from matssl.measure.objects.stereology import Lines


@dataclass(frozen=True)
class Size:
    """A length or an area that a user named, in pixels or in units of length.

    Attributes:
        value: in pixels, nm, or their squares.
        physical: whether it is in nm or nm^2.
        text: as it was given.
        power: 1 of a length, 2 of an area.
    """

    value: float
    physical: bool = False
    text: str = ""
    power: int = 1

    def pixels(self, pixel_size: float | None, name: str) -> float:
        """Return it in pixels of a field.

        Args:
            pixel_size: nm, None where it is not known.
            name: of the field.

        Raises:
            UserError: it is physical and the pixel size is not known.
        """
        if not self.physical:
            return self.value
        if pixel_size is None:
            raise UserError(
                f"{name} has no pixel size, so that {self.text} is no number of pixels; give "
                "--pixel_size, or pixels"
            )
        return self.value / pixel_size**self.power


@dataclass(frozen=True)
class Rules:
    """What is taken for an object.

    Attributes:
        least: smallest area.
        fill: whether holes belong to their object.
        separate: whether touching objects are taken apart.
        depth: of a neck between two of them; None for what :mod:`separation` takes.
    """

    least: Size = Size(10, power=2)
    fill: bool = False
    separate: bool = False
    depth: Size | None = None


@dataclass(frozen=True)
class Found:
    """The objects of a class in a field; lengths in pixels.

    Attributes:
        image: name of the field.
        specimen: which it shows.
        kind: class index.
        pixel_size: nm, None where unknown.
        pixels: of the field that count.
        first: number of the first object; they are numbered over all classes of the field.
        shapes: of the N objects.
        edges: how they lie to the edge.
        neighbours: distances of their centres.
        grey: mean grey level of each, (N,); None without a micrograph.
        lines: what test lines meet.
        dropped: how many smaller parts were left out.
        dropped_area: their pixels.
        pieces: how many smaller parts were kept, since an edge cuts them.
        split: how many more objects there are than connected parts.
        numbered: whether the mask file numbered them itself.
        sequence: that the field is a frame of, "" for none.
    """

    image: str
    specimen: str
    kind: int
    pixel_size: float | None
    pixels: int
    first: int
    shapes: Shapes
    edges: Edges
    neighbours: Neighbours
    grey: Floats | None
    lines: Lines
    dropped: int
    dropped_area: int
    pieces: int
    split: int
    numbered: bool
    sequence: str = ""

    @property
    def count(self) -> int:
        """How many objects, cut ones too."""
        return len(self.shapes.area)

    @property
    def number(self) -> float:
        """How many there are, those at an edge as halves, at a corner as quarters."""
        return float(self.edges.number.sum())


def find(
    one: Masked, kinds: tuple[int, ...], num_classes: int, rules: Rules
) -> Iterator[tuple[Found, Parts]]:
    """Yield the objects of each class of a field, and where they lie.

    Args:
        one: the field.
        kinds: indices of the classes.
        num_classes: of the mask; larger indices count nowhere.
        rules: what an object is.

    Raises:
        UserError: a rule in units of length for a field without a pixel size; a micrograph that
            cannot be read.
    """
    field = one.field
    least = rules.least.pixels(field.pixel_size, field.name)
    depth = None if rules.depth is None else rules.depth.pixels(field.pixel_size, field.name)
    unknown = one.mask >= num_classes
    grey = picture(one)
    first = 1
    for kind in kinds:
        inside = one.mask == kind
        if one.labels is not None:
            labels, split = np.where(inside, one.labels, 0).astype(np.int32, copy=False), 0
        else:
            labels, split = _labels(inside, unknown, rules, depth)
        cut = edges.touching(labels, int(labels.max(initial=0)), unknown).cut
        own = parts.large_enough(labels, least, cut, one.mask.shape)
        found = shapes.measured(own.labels, own.count, connected=one.labels is None)
        yield (
            Found(
                field.name,
                field.specimen,
                kind,
                field.pixel_size,
                int(np.count_nonzero(~unknown)),
                first,
                found,
                edges.edges(own.labels, own.count, found, unknown),
                neighbours.nearest(found.x, found.y, unknown),
                None if grey is None else _means(own, grey),
                stereology.lines(own.labels > 0, unknown),
                own.dropped,
                own.dropped_area,
                own.pieces,
                split,
                one.labels is not None,
                field.sequence,
            ),
            own,
        )
        first += own.count


def _labels(
    inside: NDArray[np.bool_], unknown: NDArray[np.bool_], rules: Rules, depth: float | None
) -> tuple[NDArray[np.int32], int]:
    """Return numbered objects, and how many more there are than connected parts."""
    if rules.fill:
        inside = parts.filled(inside, unknown)
    if not rules.separate:
        return parts.connected(inside), 0
    labels = separation.separated(inside, unknown, depth)
    return labels, int(labels.max()) - int(parts.connected(inside).max())


def picture(one: Masked) -> Array | None:
    """Return the grey levels of the micrograph, (H, W); None where it does not fit the mask."""
    grey = None if one.picture is None else one.picture()
    return grey if grey is not None and grey.shape == one.mask.shape else None


def _means(own: Parts, grey: Array) -> Floats:
    """Return the mean grey level of each object, in the levels of the micrograph."""
    labels = own.labels.ravel()
    sums = np.bincount(labels, grey.ravel(), own.count + 1)[1:]
    return sums / np.bincount(labels, minlength=own.count + 1)[1:]
