"""What an annotation file says of a picture, whichever program wrote it.

Coordinates are x (columns, to the right) and y (rows, down) in pixels, counted from the outer
corner of the first pixel: pixel (row r, column c) covers [c, c + 1) x [r, r + 1), its centre lies
at (c + 0.5, r + 0.5). A format that counts from the centre of the first pixel adds 0.5 as it reads.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from matssl.core.labels import IGNORE
from matssl.data.readers import is_image_name

Points = NDArray[np.float64]
# What labels of these names mean in every format, in lower case: no class (holes are drawn so
# where polygons cannot have any), and pixels that do not count.
BACKGROUND_LABELS = frozenset(("background", "_background_", "__background__"))
IGNORE_LABELS = frozenset(("ignore", "ignored", "__ignore__", "ignore*"))
# What ignored pixels are called in files that we write, where a format has no word of its own.
IGNORED = "ignore"
# A point farther out lies in no picture; numbers beyond are damage.
FARTHEST = 1e7


@dataclass(frozen=True)
class Patch:
    """A raster mask in a picture.

    Attributes:
        row: of its first row; negative above the picture.
        column: of its first column.
        pixels: bool (rows, columns).
    """

    row: int
    column: int
    pixels: NDArray[np.bool_]


@dataclass(frozen=True)
class Ellipse:
    """The points with ((u / rx)^2 + (v / ry)^2) <= 1, (u, v) turned back about the centre.

    Attributes:
        x: of the centre.
        y: of the centre.
        rx: half the width, above 0.
        ry: half the height, above 0.
        degrees: clockwise on the screen, where y points down.
    """

    x: float
    y: float
    rx: float
    ry: float
    degrees: float = 0.0


@dataclass(frozen=True)
class Shape:
    """One thing that somebody drew; it has rings, an ellipse or a patch.

    Attributes:
        label: name of its class as the file says it, see :func:`label_of`.
        kind: the format's word for it, for messages: polygon, box, mask.
        rings: closed outlines without their first point again, each (N, 2) with N >= 3. A pixel
            belongs to the shape where its centre lies inside an odd number of them.
        ellipse: exact, where the format has ellipses or circles.
        patch: pixels, where the format has masks.
        later: gives the patch when it is asked: a file of many masks is held as it is written.
    """

    label: str
    kind: str
    rings: tuple[Points, ...] = ()
    ellipse: Ellipse | None = None
    patch: Patch | None = None
    later: Callable[[], Patch] | None = None


@dataclass(frozen=True)
class Drawing:
    """What was drawn on one picture.

    Attributes:
        picture: which, as :func:`picture_name` makes it: with / between folders; without an ending
            where the format names none.
        size: rows and columns that the file says; None where it says none.
        shapes: in the order in which they are painted.
        source: the file that says so.
        no_area: number of things without area (lines, points, tags), by (kind, label).
        also: further names of the picture, tried in turn where the first is nowhere or fits
            several.
        ordered: whether the format says that later shapes lie above earlier ones. Elsewhere two
            classes at one pixel are a question.
        relative: whether rings are shares of width and height, which the file does not say; such a
            drawing has rings alone.
    """

    picture: str
    size: tuple[int, int] | None
    shapes: tuple[Shape, ...]
    source: Path
    no_area: Mapping[tuple[str, str], int] = field(default_factory=Counter)
    also: tuple[str, ...] = ()
    ordered: bool = False
    relative: bool = False


@dataclass(frozen=True)
class Annotations:
    """All that a file or a folder holds.

    Attributes:
        drawings: one for every picture that the files name, also for those without a shape.
        labels: names of classes that the files list, in their order; () where they list none.
        uncovered: what a pixel is that nothing covers.
        notes: what was noticed, and what was taken for what, in words.
    """

    drawings: tuple[Drawing, ...]
    labels: tuple[str, ...] = ()
    uncovered: Literal["background", "ignore"] = "background"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """Answers to what files leave open; "" where nobody answered, and then it is a question.

    Attributes:
        annotator: whose annotation of several counts: an id or e-mail, "newest" or "oldest".
        attribute: which attribute of a region is its class.
        boxes: what a box is where shapes are meant: "fill" (all of it is the class), "skip".
        label: class of shapes to which the format gives none.
    """

    annotator: str = ""
    attribute: str = ""
    boxes: str = ""
    label: str = ""


@dataclass(frozen=True)
class Marked:
    """A mask to be written as annotations.

    Attributes:
        picture: path of the picture below its folder, with /.
        mask: uint8 (rows, columns), class numbers; :data:`matssl.core.labels.IGNORE` is ignored.
        file: the picture itself, for formats whose files lead to it; None where it is not there.
    """

    picture: str
    mask: NDArray[np.uint8]
    file: Path | None = None

    def layers(self, names: Mapping[int, str]) -> Iterable[tuple[int, NDArray[np.bool_]]]:
        """Return the classes to draw that are there, with their pixels; ignored ones last.

        Args:
            names: of the classes to draw; others (background) stay undrawn.
        """
        there = np.bincount(self.mask.ravel(), minlength=256)
        numbers = [*(n for n in names if n != IGNORE), IGNORE]
        return ((number, self.mask == number) for number in numbers if there[number])


def picture_name(text: str) -> str:
    """Return the name of a picture as a file says it: NFC, / between folders, no drive or root."""
    plain = unicodedata.normalize("NFC", text).replace("\\", "/").strip()
    parts = [part for part in plain.split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":
        parts = parts[1:]
    return "/".join(parts)


def stem_of(name: str) -> str:
    """Return a picture's name without the ending of an image file; ``4.2V-001`` has none."""
    return name.rsplit(".", 1)[0] if is_image_name(name.rsplit("/", 1)[-1]) else name


def label_of(text: str) -> str:
    """Return a label with its letters composed (NFC) and without blanks about it."""
    return unicodedata.normalize("NFC", text).strip()


def is_background(label: str) -> bool:
    """Return whether a label means that there is no class."""
    return label.casefold() in BACKGROUND_LABELS


def is_ignored(label: str) -> bool:
    """Return whether a label means that its pixels do not count."""
    return label.casefold() in IGNORE_LABELS


def ring(points: Sequence[tuple[float, float]] | Points) -> Points:
    """Return an outline as float64 (N, 2), without its first point again at the end."""
    found = np.asarray(points, np.float64).reshape(-1, 2)
    if len(found) > 1 and (found[0] == found[-1]).all():
        found = found[:-1]
    return found


def box(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Return the outline of a box between two opposite corners in any order."""
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


def turned(points: Points, degrees: float, x: float, y: float) -> Points:
    """Return points turned clockwise on the screen (y down) about (x, y)."""
    angle = np.radians(degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    if degrees % 90 == 0:
        # A quarter turn keeps whole coordinates whole.
        cos, sin = round(cos), round(sin)
    dx, dy = points[:, 0] - x, points[:, 1] - y
    return np.stack([x + dx * cos - dy * sin, y + dx * sin + dy * cos], axis=1)
