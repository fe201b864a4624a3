"""Masks of annotated pictures, and what is said of them: for ``annotations import``, and elsewhere.

Where annotation files lie in the place of masks, they become masks in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from matssl.core.labels import IGNORE
from matssl.core.wording import counted, cut
from matssl.data.annotations.classes import Classes
from matssl.data.annotations.drawing import Drawing
from matssl.data.annotations.pairing import Paired, size_of
from matssl.data.annotations.raster import Painted, paint

# Kinds of things without area, and pictures, that are named.
KINDS, SHOWN = 6, 3


def painted(
    paired: Paired, classes: Classes, uncovered: str, overlap: str | None = None
) -> Iterator[tuple[Path, Drawing, Painted]]:
    """Yield the pictures with what is drawn on them and the mask that it makes.

    Args:
        paired: drawings with their pictures.
        classes: numbers of the labels.
        uncovered: "ignore" where pixels that nothing covers are not labelled.
        overlap: ``--overlap``, which of two classes has a pixel; None as the format says.

    Raises:
        UserError: a picture cannot be read, or is of another size than what was drawn upon.
    """
    bare = IGNORE if uncovered == "ignore" else classes.bare
    for path, drawing in paired.found:
        yield path, drawing, paint(drawing, size_of(path, drawing), classes.values, overlap, bare)


def numbered(classes: Classes) -> str:
    """Return the classes with their numbers, in words."""
    return ", ".join(f"{cut(name, 60)} {value}" for name, value in classes.numbers.items())


def not_drawn(classes: Classes, uncovered: str) -> str:
    """Return what pixels are taken for that nothing covers, in words."""
    return "ignored" if uncovered == "ignore" else f"{classes.uncovered} ({classes.bare})"


def without_area(drawings: Iterable[Drawing]) -> str:
    """Return how many lines, points and tags there are that make no mask, by kind and label.

    "" where there are none.
    """
    number: Counter[str] = Counter()
    for drawing in drawings:
        for (kind, label), n in drawing.no_area.items():
            number[f"{kind} of {cut(label, 60)}" if label else cut(kind, 60)] += n
    more = ", ..." if len(number) > KINDS else ""
    return ", ".join(f"{n} {what}" for what, n in number.most_common(KINDS)) + more


def absent(paired: Paired) -> str:
    """Return the annotated pictures that are not there, in words; "" where all are."""
    if not paired.absent:
        return ""
    shown = ", ".join(cut(drawing.picture, 80) for drawing in paired.absent[:SHOWN])
    return f"{counted(len(paired.absent), 'annotated picture')}: {shown}"
