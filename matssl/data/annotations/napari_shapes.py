"""napari: shapes layers saved as CSV, one layer a file; row before column, from pixel centres.

The table names neither picture nor class. The file is named as its picture; the class is the folder
that it lies in where ``label_names.csv`` beside that folder lists it (as we write one layer a
class), what ``--label`` says, or else ``shape``. Paths and lines have no area.

napari's polygons have no holes: they are written with cuts of no width, from the outline to each
hole and back.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import cut
from matssl.data.annotations import named, numbered, outlines, sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Points,
    Shape,
    label_of,
    stem_of,
)

ENDINGS = (".csv",)
HEADER = ("index", "shape-type", "vertex-index", "axis-0", "axis-1")
WITHOUT_AREA = ("path", "line")
# The class of a layer of which nothing is known.
SHAPE = "shape"
# From the centre of the first pixel to its outer corner.
HALF = 0.5


def _is_one(path: Path) -> bool:
    return sources.holds(path, HEADER)


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds shapes of napari."""
    return sources.recognised(path, ENDINGS, _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the CSV files of a folder hold; those of one picture are its classes.

    Raises:
        UserError: no such file, a damaged one, shapes on several planes.
    """
    beside = (numbered.NAMES,)
    found, notes = sources.chosen(path, ENDINGS, _is_one, "napari shapes", beside)
    root = path if path.is_dir() else path.parent
    folders = _folders(numbered.read_names(root))
    layers: dict[tuple[str, ...], list[tuple[Path, str]]] = {}
    for file in found:
        top = file.relative_to(root).parts[0]
        label = folders.get(top) if file.parent != root else None
        pictures = named.pictures(file, root if label is None else root / top)
        layers.setdefault(pictures, []).append((file, label or label_of(choices.label) or SHAPE))
    drawings = tuple(_drawing(pictures, files) for pictures, files in layers.items())
    return Annotations(drawings, tuple(folders.values()), notes=notes)


def _folders(names: Mapping[int, str]) -> dict[str, str]:
    """Return the class of each folder of layers."""
    return {_folder(name): name for name in names.values()}


def _folder(name: str) -> str:
    """Return what the folder of a class is called: no / and no dots alone."""
    escaped = quote(name, safe=" ,;+=()[]{}@#&")
    return escaped if escaped.strip(".") else escaped.replace(".", "%2E")


def _drawing(pictures: Sequence[str], files: Sequence[tuple[Path, str]]) -> Drawing:
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    for file, label in files:
        for where, kind, points in _objects(file):
            shape = _shape(label, kind, points, where)
            if shape is None:
                no_area[kind, label] += 1
            else:
                shapes.append(shape)
    return Drawing(pictures[0], None, tuple(shapes), files[0][0], no_area, tuple(pictures[1:]))


def _objects(file: Path) -> Iterator[tuple[str, str, Points]]:
    """Yield the shapes of a table: where it stands, its type and its points (x, y).

    Raises:
        UserError: it is no such table, or its shapes lie on several planes.
    """
    rows = textfiles.read_rows(file)
    if not rows:
        return
    absent = [name for name in HEADER if name not in rows[0]]
    if absent:
        raise UserError(f"{file} lacks the column {absent[0]}; napari saves shapes as CSV with it")
    axes = sorted(
        (name for name in rows[0] if name.startswith("axis-") and name[5:].isdecimal()),
        key=lambda name: int(name[5:]),
    )
    planes = {tuple(_number(row[name], str(file)) for name in axes[:-2]) for row in rows}
    if len(planes) > 1:
        raise UserError(
            f"{file} holds shapes on {len(planes)} planes of a stack; save those of each as a file "
            "of its own, named as the picture of that plane"
        )
    # A table that was sorted by another column is put together again.
    shapes: dict[float, list[tuple[int, Mapping[str, str]]]] = {}
    for at, row in enumerate(rows):
        where = f"{file}, line {at + 2}"
        shapes.setdefault(_number(row["index"], where), []).append((at, row))
    for own in shapes.values():
        where = f"{file}, line {own[0][0] + 2}"
        kinds = {row["shape-type"].lower() for _, row in own}
        if len(kinds) > 1:
            raise UserError(f"{where}: one shape of the types {', '.join(sorted(kinds))[:80]}")
        places = [_number(row["vertex-index"], f"{file}, line {at + 2}") for at, row in own]
        if len(set(places)) < len(places):
            raise UserError(f"{where}: two points of its shape have the same vertex-index")
        in_order = [row for _, (_, row) in sorted(zip(places, own, strict=True), key=_first)]
        # Row before column.
        numbers = [[_number(row[name], where) + HALF for name in axes[:-3:-1]] for row in in_order]
        yield where, kinds.pop(), sources.outline(numbers, where)


def _first(pair: tuple[float, object]) -> float:
    return pair[0]


def _number(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise UserError(f"{where}: {cut(repr(cell), 40)} is no number") from error


def _shape(label: str, kind: str, points: Points, where: str) -> Shape | None:
    """Return a shape with an area; None of one that has none.

    Raises:
        UserError: it is of no type of napari's, or an ellipse without its four corners.
    """
    if kind in WITHOUT_AREA or (kind in ("polygon", "rectangle") and len(points) < 3):
        return None
    if kind in ("polygon", "rectangle"):
        return Shape(label, kind, (points,))
    if kind == "ellipse":
        sources.at_least(points, 4, where)
        x, y = points[:4].mean(axis=0).tolist()
        along, across = points[1] - points[0], points[3] - points[0]
        rx, ry = (float(np.hypot(*side)) / 2 for side in (along, across))
        turn = float(np.degrees(np.arctan2(along[1], along[0])))
        return Shape(label, kind, ellipse=Ellipse(x, y, rx, ry, turn)) if rx and ry else None
    raise UserError(f"{where}: {cut(repr(kind), 40)} is no shape of napari's")


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as CSV of shapes, a folder a class, since a layer has no other place for it.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are a layer ``__ignore__``.
    """
    called = {**names, IGNORE: numbered.IGNORED}
    for picture in pictures:
        for number, pixels in picture.layers(names):
            place = folder / _folder(called[number]) / f"{stem_of(picture.picture)}.csv"
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_text(place, _table(outlines.polygons(pixels)))
    atomic_write_text(folder / numbered.NAMES, numbered.table_of(names, numbered.numbering(names)))


def _table(parts: Sequence[Sequence[Points]]) -> str:
    out = io.StringIO()
    out.write(",".join(HEADER) + "\n")
    for index, rings in enumerate(parts):
        for vertex, (x, y) in enumerate(cut_open(rings).tolist()):
            out.write(f"{index},polygon,{vertex},{y - HALF},{x - HALF}\n")
    return out.getvalue()


def cut_open(rings: Sequence[Points]) -> Points:
    """Return a part with holes as one outline: from a point of it to each hole and back.

    Both ways of a cut are the same line, so that it takes no pixel.

    Args:
        rings: outer ring, then holes.
    """
    whole = rings[0]
    # From the top, so that each cut meets what is joined already.
    for hole in sorted(rings[1:], key=lambda ring: (ring[:, 1].min(), ring[:, 0].min())):
        start = int(np.lexsort((hole[:, 0], hole[:, 1]))[0])
        turned = np.roll(hole, -start, axis=0)
        distance = ((whole - turned[0]) ** 2).sum(axis=1)
        at = int(np.argmin(distance))
        whole = np.concatenate([whole[: at + 1], turned, turned[:1], whole[at:]])
    return whole
