"""CVAT for images 1.1: one XML file of many pictures, painted by ``z_order``.

The file is read element by element with what declares entities refused: nothing in it can grow
or lead to another file.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import cut
from matssl.data.annotations import outlines, runs, sources
from matssl.data.annotations.drawing import (
    IGNORED,
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Points,
    Shape,
    box,
    picture_name,
    turned,
)
from matssl.data.annotations.raster import covered

FILE = "annotations.xml"
WITHOUT_AREA = ("polyline", "points", "tag", "skeleton", "cuboid")
DEEPEST, PART = 64, 1 << 20
PAIRS = re.compile(r"[^,;]+,[^,;]+(;[^,;]+,[^,;]+)*")


def _is_one(path: Path) -> bool:
    return sources.holds(path, ("<annotations",)) and (
        sources.holds(path, ("<image ",)) or sources.holds(path, ("<meta>",))
    )


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds CVAT's XML."""
    return sources.recognised(path, (".xml",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the XML files of a folder hold.

    Raises:
        UserError: no such file, a damaged one, one of a video, one that declares entities.
    """
    found, notes = sources.chosen(path, (".xml",), _is_one, "CVAT")
    drawings: list[Drawing] = []
    labels: list[str] = []
    for file in found:
        held = _File(file, choices)
        held.parse()
        drawings += held.drawings
        labels += held.labels
    return Annotations(tuple(drawings), tuple(dict.fromkeys(labels)), notes=notes)


class _File:
    """One file as it is read: what the parser meets, and what came of it."""

    def __init__(self, file: Path, choices: Choices) -> None:
        self.file, self.choices = file, choices
        self.drawings: list[Drawing] = []
        self.labels: list[str] = []
        self.open: list[str] = []
        self.image: Mapping[str, str] | None = None
        self.items: list[tuple[int, Shape]] = []
        self.no_area: Counter[tuple[str, str]] = Counter()
        self.number = 0
        self.name = ""

    def parse(self) -> None:
        """Read the file.

        Raises:
            UserError: it is damaged, or not of images.
        """
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.letters
        parser.StartDoctypeDeclHandler = self.doctype
        if self.file.stat().st_size > sources.BYTES:
            raise UserError(f"{self.file} is larger than {sources.BYTES / 1e6:,.0f} MB")
        try:
            with open(self.file, "rb") as data:
                while part := data.read(PART):
                    parser.Parse(part)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            if error.code == expat.errors.codes[expat.errors.XML_ERROR_INCORRECT_ENCODING]:
                raise UserError(
                    f"{self.file} is not in the encoding that its first line names; save it as "
                    'UTF-8, with encoding="utf-8" there'
                ) from error
            raise UserError(f"{self.file} is no XML, or cut off: {error}") from error
        except (ValueError, LookupError) as error:
            # An encoding that Python does not know.
            raise UserError(f"{self.file} is no XML that is read: {cut(str(error))}") from error
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from error

    def doctype(self, *said: object) -> None:
        """Refuse what may declare entities."""
        raise UserError(f"{self.file} declares a document type, which CVAT does not: not read")

    def start(self, tag: str, values: dict[str, str]) -> None:
        """Take an element."""
        if len(self.open) >= DEEPEST:
            raise UserError(f"{self.file} is nested too deeply")
        if not self.open and tag != "annotations":
            raise UserError(f"{self.file} begins with <{cut(tag, 40)}>, not <annotations>")
        if len(self.open) == 1 and tag == "track":
            raise UserError(
                f"{self.file} is CVAT for video (tracks); export it as CVAT for images 1.1"
            )
        if len(self.open) == 1 and tag == "image":
            self.image, self.items, self.no_area = values, [], Counter()
            self.number = 0
        elif len(self.open) == 2 and self.image is not None:
            self.number += 1
            self._item(tag, values)
        self.open.append(tag)
        self.name = ""

    def letters(self, text: str) -> None:
        """Take text between elements."""
        if self.open[-1] == "name":
            self.name += text

    def end(self, tag: str) -> None:
        """Take the end of an element."""
        if self.open[-3:] == ["labels", "label", "name"]:
            self.labels.append(sources.label(self.name, f"{self.file}: label"))
        self.open.pop()
        if len(self.open) == 1 and tag == "image" and self.image is not None:
            where = f"{self.file}, image {len(self.drawings) + 1}"
            size = None
            if "height" in self.image and "width" in self.image:
                height, width = (_number(self.image, side, where) for side in ("height", "width"))
                size = sources.size(height, width, where)
            name = picture_name(sources.text(self.image.get("name"), f"{where}: name"))
            shapes = [shape for _, shape in sorted(self.items, key=lambda item: item[0])]
            self.drawings.append(
                Drawing(name, size, tuple(shapes), self.file, self.no_area, ordered=True)
            )
            self.image = None

    def _item(self, tag: str, values: Mapping[str, str]) -> None:
        name = cut(str(self.image and self.image.get("name")), 60)
        where = f"{self.file}, {name}, {cut(tag, 40)} {self.number}"
        label = sources.label_or(values.get("label"), self.choices.label, where)
        if tag in WITHOUT_AREA:
            self.no_area[tag, label] += 1
            return
        shape = _READERS.get(tag, _unknown)(label, values, where)
        if shape is None:
            self.no_area[tag, label] += 1
            return
        z = sources.whole(
            _number(values, "z_order", where, 0.0), f"{where}: z_order", -(2**31), 2**31
        )
        self.items.append((z, shape))


def _number(values: Mapping[str, str], key: str, where: str, instead: float | None = None) -> float:
    if key not in values and instead is not None:
        return instead
    try:
        return sources.number(float(values[key]), f"{where}: {key}", -(2.0**31), 2.0**31)
    except (KeyError, ValueError) as error:
        said = cut(repr(values[key]), 40) if key in values else "missing"
        raise UserError(f"{where}: {key} is {said}, not a number") from error


def _numbers(said: str, kind: type[np.generic]) -> NDArray[Any]:
    """Return numbers between commas, without an object for each: a mask may have millions.

    Raises:
        ValueError: something else stands there.
    """
    with warnings.catch_warnings():
        # Of what is no number numpy only warns.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return np.fromstring(said, kind, sep=",")
        except DeprecationWarning as error:
            raise ValueError(str(error)) from error


def _unknown(label: str, values: Mapping[str, str], where: str) -> Shape | None:
    raise UserError(f"{where} is of no kind that CVAT 1.1 has")


def _polygon(label: str, values: Mapping[str, str], where: str) -> Shape | None:
    said = values.get("points", "").strip().strip(";")
    if said and not PAIRS.fullmatch(said):
        raise UserError(f"{where}: its points are not of the form x,y;x,y")
    try:
        numbers = _numbers(said.replace(";", ","), np.float64)
    except ValueError as error:
        raise UserError(f"{where}: its points are not of the form x,y;x,y") from error
    ring = sources.outline(numbers.reshape(-1, 2), where)
    return Shape(label, "polygon", (ring,)) if len(ring) > 2 else None


def _box(label: str, values: Mapping[str, str], where: str) -> Shape | None:
    x0, y0, x1, y1 = (_number(values, key, where) for key in ("xtl", "ytl", "xbr", "ybr"))
    ring: Points = box(x0, y0, x1, y1)
    degrees = _number(values, "rotation", where, 0.0)
    if degrees:
        ring = turned(ring, degrees, (x0 + x1) / 2, (y0 + y1) / 2)
    return Shape(label, "box", (sources.outline(ring, where),))


def _ellipse(label: str, values: Mapping[str, str], where: str) -> Shape | None:
    x, y, rx, ry = (_number(values, key, where) for key in ("cx", "cy", "rx", "ry"))
    degrees = _number(values, "rotation", where, 0.0)
    return sources.ellipse(label, Ellipse(x, y, abs(rx), abs(ry), degrees), where)


def _mask(label: str, values: Mapping[str, str], where: str) -> Shape | None:
    place = (_number(values, key, where) for key in ("top", "left"))
    row, column = (sources.whole(n, where, -(1 << 20), 1 << 20) for n in place)
    size = sources.size(_number(values, "height", where), _number(values, "width", where), where)
    said = values.get("rle", "")
    try:
        counts = _numbers(said, np.int64)
    except ValueError as error:
        raise UserError(f"{where}: its rle is no list of whole numbers") from error
    checked = runs.checked(counts, size[0] * size[1], where)
    return Shape(label, "mask", later=functools.partial(runs.rows, checked, row, column, size))


_READERS: dict[str, Callable[[str, Mapping[str, str], str], Shape | None]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as one XML file, an element for every part.

    Parts with holes are masks, all others polygons along the edges of pixels.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are of the class ``ignore``.
    """
    images: list[str] = []
    labels = dict(names)
    for number, picture in enumerate(pictures):
        rows, columns = picture.mask.shape
        lines = [
            f'  <image id="{number}" name={quoteattr(picture.picture)} width="{columns}" '
            f'height="{rows}">'
        ]
        for value, pixels in picture.layers(names):
            name = labels.setdefault(value, IGNORED)
            for rings in outlines.polygons(pixels):
                lines.append(f"    {_written(rings, name, pixels.shape)}")
        images.append("\n".join([*lines, "  </image>"]))
    listed = "".join(f"<label><name>{escape(name)}</name></label>" for name in labels.values())
    text = (
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
        f"  <meta><task><labels>{listed}</labels></task></meta>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / FILE, "\n".join([text, *images, "</annotations>\n"]))


def _written(rings: list[Any], name: str, size: tuple[int, ...]) -> str:
    common = f'label={quoteattr(name)} source="semi-auto" occluded="0" z_order="0"'
    if len(rings) == 1:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in rings[0])
        return f'<polygon {common} points="{points}"></polygon>'
    patch = covered(Shape(name, "mask", tuple(rings)), (size[0], size[1]))
    counts = ", ".join(map(str, runs.of_pixels(patch.pixels.ravel()).tolist()))
    rows, columns = patch.pixels.shape
    place = f'left="{patch.column}" top="{patch.row}" width="{columns}" height="{rows}"'
    return f'<mask {common} rle="{counts}" {place}></mask>'
