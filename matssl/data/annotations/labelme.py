"""LabelMe: a JSON file a picture, polygons and masks; later shapes are painted over earlier ones.

Written from the format's description; LabelMe's own library is not used. Polygons have no holes: a
part with holes is written as a ``mask``, all others as polygons that follow pixel edges.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import cut
from matssl.data.annotations import outlines, sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Patch,
    Points,
    Shape,
    box,
    picture_name,
    stem_of,
)
from matssl.data.annotations.raster import covered

# What LabelMe 5 writes; it complains of files of another main version.
VERSION, IGNORED = "5.8.1", "__ignore__"
WITHOUT_AREA = ("line", "linestrip", "point", "points")


def _is_one(path: Path) -> bool:
    words = ('"imagePath"', '"imageData"', '"shape_type"', '"points"')
    if not any(sources.holds(path, (word,)) for word in words):
        return False
    # With its keys sorted, the picture itself lies before the shapes.
    return sources.holds(path, ('"shapes"',), whole=True)


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds LabelMe's JSON."""
    return sources.recognised(path, (".json",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the JSON files of a folder hold, a picture each.

    Raises:
        UserError: no such file, a damaged one, a shape of an unknown kind.
    """
    found, notes = sources.chosen(path, (".json",), _is_one, "LabelMe")
    root = path if path.is_dir() else path.parent
    return Annotations(tuple(_drawing(file, root, choices) for file in found), notes=notes)


def _drawing(file: Path, root: Path, choices: Choices) -> Drawing:
    content = sources.table(sources.read_json(file), str(file))
    size = None
    if content.get("imageHeight") is not None and content.get("imageWidth") is not None:
        size = sources.size(content["imageHeight"], content["imageWidth"], str(file))
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    for at, value in enumerate(sources.listing(content.get("shapes"), f"{file}: shapes")):
        where = f"{file}, shape {at + 1}"
        item = sources.table(value, where)
        label = sources.label_or(item.get("label"), choices.label, where)
        kind = item.get("shape_type") or "polygon"
        shape = None if kind in WITHOUT_AREA else _shape(item, label, kind, where)
        if shape is None:
            no_area[str(kind), label] += 1
        else:
            shapes.append(shape)
    names = _names(file, root, content)
    return Drawing(names[0], size, tuple(shapes), file, no_area, tuple(names[1:]), ordered=True)


def _names(file: Path, root: Path, content: Mapping[str, Any]) -> list[str]:
    """Return how the picture may be called: as ``imagePath`` leads to it, then as the file."""
    folder = file.parent.relative_to(root).as_posix()
    said = content.get("imagePath")
    names = []
    if isinstance(said, str) and said.strip():
        plain = said.replace("\\", "/")
        inside = plain[1:2] != ":" and not plain.startswith("/")
        way = posixpath.normpath(posixpath.join(folder, plain)) if inside else plain
        names = [picture_name(way), picture_name(f"{folder}/{PurePosixPath(plain).name}")]
    return list(dict.fromkeys([*names, picture_name(f"{folder}/{file.stem}")]))


def _shape(item: Mapping[str, Any], label: str, kind: object, where: str) -> Shape | None:
    """Return a shape with an area; None of a polygon that has none."""
    points = sources.points(item.get("points"), f"{where}: points")
    if kind == "mask":
        sources.at_least(points, 1, where)
        data = sources.decoded(item.get("mask"), f"{where}: mask")
        sources.png_size(data, f"{where}: mask")
        return Shape(label, "mask", later=functools.partial(_patch, data, points, where))
    if kind == "circle":
        sources.at_least(points, 2, where)
        radius = float(np.hypot(*(points[1] - points[0])))
        x, y = points[0].tolist()
        return Shape(label, "circle", ellipse=Ellipse(x, y, radius, radius)) if radius else None
    if kind == "rectangle" and len(points) == 2:
        return Shape(label, "rectangle", (box(*points[0], *points[1]),))
    if kind in ("polygon", "rectangle", "oriented_rectangle", "rotation"):
        return Shape(label, str(kind), (points,)) if len(points) > 2 else None
    raise UserError(f"{where} has the unknown shape_type {cut(repr(kind), 60)}")


def _patch(data: bytes, points: Points, where: str) -> Patch:
    pixels = sources.png(data, f"{where}: mask")
    # By the picture's own size: some writers put the last corner inside, others outside.
    x, y = np.rint(points[0]).astype(int).tolist()
    return Patch(y, x, pixels)


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as JSON files, in the folders of their pictures.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are drawn as ``__ignore__``.
    """
    for picture in pictures:
        file = folder / f"{stem_of(picture.picture)}.json"
        shapes = [
            shape
            for number, pixels in picture.layers(names)
            for shape in _written(pixels, IGNORED if number == IGNORE else names[number])
        ]
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": _way(picture, file),
            "imageData": None,
            "imageHeight": picture.mask.shape[0],
            "imageWidth": picture.mask.shape[1],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _way(picture: Marked, file: Path) -> str:
    """Return the path from the JSON file to its picture, with which LabelMe opens it."""
    if picture.file is None:
        return PurePosixPath(picture.picture).name
    try:
        return Path(os.path.relpath(picture.file, file.parent)).as_posix()
    except ValueError:
        # On another drive of Windows.
        return picture.file.resolve().as_posix()


def _written(pixels: NDArray[np.bool_], label: str) -> Iterable[dict[str, Any]]:
    for rings in outlines.polygons(pixels):
        shape: dict[str, Any] = {"label": label, "points": rings[0].tolist(), "group_id": None}
        shape |= {"description": "", "shape_type": "polygon", "flags": {}, "mask": None}
        if len(rings) > 1:
            patch = covered(Shape(label, "mask", tuple(rings)), pixels.shape)
            rows, columns = patch.pixels.shape
            last = [patch.column + columns - 1.0, patch.row + rows - 1.0]
            shape["points"] = [[float(patch.column), float(patch.row)], last]
            shape |= {"shape_type": "mask", "mask": _png(patch.pixels)}
        yield shape


def _png(pixels: NDArray[np.bool_]) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
