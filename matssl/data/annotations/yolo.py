"""YOLO segments: a text file a picture, a line a polygon, in shares of width and height.

A line is ``class x1 y1 x2 y2 ...``. Names of classes are in ``data.yaml``, or in ``classes.txt``, a
line each. Holes are cuts without width, which even-odd filling leaves open. Read, not written.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data.annotations import sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Shape,
    box,
    picture_name,
)

NAMES, NAMES_TEXT = (".yaml", ".yml"), "classes.txt"
# A class number and at least four further numbers.
_LINE = re.compile(
    rb"\s*\d+([ \t]+-?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?){4,}[ \t]*(\r?\n|$)", re.IGNORECASE
)
# Of an empty file its folder says what it is.
_FOLDER = "labels"
# Coordinates are shares; corrections may lie a little outside.
FARTHEST = 10.0


def _is_one(path: Path) -> bool:
    if path.name.lower() == NAMES_TEXT:
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(sources.LOOKED_AT)
    except OSError:
        return False
    if not start.strip():
        return _FOLDER in path.parts
    if len(start) == sources.LOOKED_AT and b"\n" not in start:
        # Its last number may be cut in two.
        start = start[: start.rfind(b" ")]
    line = _LINE.match(start)
    if line is None:
        return False
    # Tables of measurements look alike, but for their numbers.
    shares = all(abs(float(word)) <= FARTHEST for word in line[0].split()[1:])
    return shares or _FOLDER in path.parts


def _named(path: Path) -> bool:
    return sources.holds(path, ("names",))


def recognise(path: Path) -> bool:
    """Return whether a folder holds YOLO's labels, or a file is one."""
    return sources.recognised(path, (".txt",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the label files of a folder hold.

    Raises:
        UserError: no such file, a damaged one, boxes instead of segments.
    """
    found, notes = sources.chosen(path, (".txt",), _is_one, "YOLO")
    root = path if path.is_dir() else path.parent
    names, told = _names(root)
    boxes: list[str] = []
    drawings = [_drawing(file, root, names, choices, boxes) for file in found]
    if boxes and not choices.boxes:
        raise UserError(
            f"{counted(len(boxes), 'line')} of {path} hold a box and no segment (first: "
            f"{boxes[0]}): --boxes fill takes the whole box for the class, skip leaves them out"
        )
    return Annotations(tuple(drawings), tuple(names.values()), notes=(*notes, *told))


def _names(root: Path) -> tuple[dict[int, str], list[str]]:
    """Return names by class number, and a note where there are none."""
    files = [file for file in sources.files(root, NAMES) if _named(file)]
    files = [file for file in files if _listed(file) is not None]
    if not files and root.name == _FOLDER:
        files = [file for file in sorted(root.parent.glob("*.y*ml")) if _named(file)]
        files = [file for file in files if _listed(file) is not None]
    texts = [f for f in sources.files(root, (".txt",)) if f.name.lower() == NAMES_TEXT]
    if not files and texts:
        lines = textfiles.read_lines(texts[0])
        return {at: sources.label(name, str(texts[0])) for at, name in enumerate(lines)}, []
    if not files:
        return {}, ["no data.yaml with names: classes are called by their numbers"]
    tables = [_listed(file) for file in files]
    if any(table != tables[0] for table in tables):
        raise UserError(f"{files[0]} and {files[1]} name classes differently; leave one of them")
    return tables[0] or {}, []


def _listed(file: Path) -> dict[int, str] | None:
    content = textfiles.read_yaml(file)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict):
        return None
    found = {}
    for key, name in names.items():
        if not str(key).strip().isdecimal():
            raise UserError(f"{file}: names has the key {key!r}, not a class number")
        found[int(key)] = sources.label(name, f"{file}: name {key}")
    return dict(sorted(found.items()))


def _drawing(
    file: Path, root: Path, names: Mapping[int, str], choices: Choices, boxes: list[str]
) -> Drawing:
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    for at, line in enumerate(textfiles.read_text(file, sources.BYTES).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{file}, line {at}"
        try:
            number, values = int(words[0]), np.array(words[1:], np.float64)
            if number < 0:
                raise ValueError(number)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{where} is not of the form: class x1 y1 x2 y2 ...") from error
        if names and number not in names:
            raise UserError(f"{where} is of class {number}, which data.yaml does not name")
        label = names.get(number, str(number))
        if not (np.abs(values) <= FARTHEST).all():
            raise UserError(f"{where} holds a number that is no share of width or height")
        if len(values) == 4:
            boxes.append(where)
            if choices.boxes == "fill":
                x, y, w, h = values.tolist()
                ring = box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                shapes.append(Shape(label, "box", (ring,)))
            else:
                no_area["box", label] += 1
        elif len(values) < 6 or len(values) % 2:
            raise UserError(
                f"{where} holds {len(values)} numbers, which are no points of a segment"
            )
        else:
            shapes.append(Shape(label, "segment", (sources.outline(values.reshape(-1, 2), where),)))
    first, *others = _pictures(file, root)
    return Drawing(first, None, tuple(shapes), file, no_area, tuple(others), relative=True)


def _pictures(file: Path, root: Path) -> list[str]:
    """Return how the picture of a label file may be called: ``images`` stands for ``labels``."""
    inside = file.relative_to(root).with_suffix("")
    parts = (root.name, *inside.parts) if root.name == _FOLDER else inside.parts
    swapped = ["images" if part == _FOLDER else part for part in parts]
    left = [part for part in parts if part != _FOLDER]
    names = [picture_name("/".join(way)) for way in (swapped, left)]
    return list(dict.fromkeys(names))
