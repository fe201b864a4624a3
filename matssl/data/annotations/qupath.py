"""QuPath: GeoJSON of annotations, a file a picture, named as the picture.

Read from QuPath 0.2 on. Inner rings are holes; ``isEllipse`` means the ellipse in the bounding box;
a class ``Ignore*`` is ignored. Annotations lie in a hierarchy and not above each other, so that two
classes at one pixel are a question. Detections and cells are left out, and said.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.palette import COLOURS
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted, cut
from matssl.data.annotations import named, outlines, sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Points,
    Shape,
    stem_of,
)

ENDINGS = (".geojson", ".json")
# What QuPath calls its ignored class; __ignore__ would be one class more to its user.
IGNORED = "Ignore*"
WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
# How deep collections of geometries may lie in each other.
DEPTH = 8


def _is_one(path: Path) -> bool:
    if not sources.holds(path, ('"geometry"', '"Feature')):
        return False
    # GeoJSON of maps has the ending as well; QuPath's properties tell.
    return path.suffix.lower() == ".geojson" or sources.holds(path, ('"classification"',))


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds GeoJSON of QuPath."""
    return sources.recognised(path, ENDINGS, _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the GeoJSON files of a folder hold, a picture each.

    Raises:
        UserError: no such file, a damaged one, an annotation without class, several planes.
    """
    found, notes = sources.chosen(path, ENDINGS, _is_one, "QuPath")
    root = path if path.is_dir() else path.parent
    told = list(notes)
    drawings = tuple(_drawing(file, root, choices, told) for file in found)
    return Annotations(drawings, notes=tuple(told))


def _drawing(file: Path, root: Path, choices: Choices, told: list[str]) -> Drawing:
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    others: Counter[str] = Counter()
    planes: set[tuple[object, object]] = set()
    for at, value in enumerate(_features(sources.read_json(file), file)):
        where = f"{file}, object {at + 1}"
        item = sources.table(value, where)
        said = item.get("properties")
        properties = {} if said is None else sources.table(said, f"{where}: properties")
        kind = _kind(item, properties)
        if kind != "annotation":
            others[kind] += 1
            continue
        geometry = sources.table(item.get("geometry"), f"{where}: geometry")
        planes.add(_plane(geometry))
        label = _class(properties.get("classification"), where)
        # QuPath itself says it in the geometry.
        is_ellipse = any(place.get("isEllipse") is True for place in (geometry, properties))
        found = list(_shapes(geometry, is_ellipse, where))
        for name, rings, ellipse in found:
            if not rings and ellipse is None:
                no_area[name, label or ""] += 1
                continue
            given = sources.label_or(label, choices.label, where)
            shapes.append(Shape(given, name, rings, ellipse))
    if len(planes) > 1:
        raise UserError(
            f"{file} holds annotations on {len(planes)} planes of a stack; save those of each as "
            "a file of its own, named as the picture of that plane"
        )
    if others and not shapes and not no_area:
        raise UserError(
            f"{file} holds {_counted(others)} and no annotation; in QuPath, Objects > Convert > "
            "Detections to annotations makes some of them"
        )
    if others:
        told.append(f"{file.name}: {_counted(others)} left out, annotations alone are read")
    names = named.pictures(file, root)
    return Drawing(names[0], None, tuple(shapes), file, no_area, names[1:])


def _counted(others: Mapping[str, int]) -> str:
    return ", ".join(counted(number, name) for name, number in others.items())


def _features(content: object, file: Path) -> list[Any]:
    """Return the objects of a collection, of a bare list, or the one that is there."""
    if isinstance(content, list):
        return content
    whole = sources.table(content, str(file))
    if "features" in whole:
        return sources.listing(whole["features"], f"{file}: features")
    if "geometry" in whole:
        return [whole]
    raise UserError(f"{file} holds neither features nor a geometry")


def _kind(item: Mapping[str, Any], properties: Mapping[str, Any]) -> str:
    """Return what an object is to QuPath: annotation, detection, cell, tile, root, ..."""
    said = properties.get("objectType", properties.get("object_type"))
    if said is None:
        # Version 0.2 says so in the place of the object's id.
        old = str(item.get("id", ""))
        said = old[:-6].removeprefix("Path") if old.endswith("Object") else "annotation"
    return cut(str(said).strip().lower(), 40) or "annotation"


def _plane(geometry: Mapping[str, Any]) -> tuple[object, object]:
    plane = geometry.get("plane")
    plane = plane if isinstance(plane, dict) else {}
    return str(plane.get("z", 0)), str(plane.get("t", 0))


def _class(value: object, where: str) -> str | None:
    """Return the class of an annotation, None where it has none.

    Raises:
        UserError: it is neither a text nor an object with a name or names.
    """
    if value is None or isinstance(value, str):
        return value
    said = sources.table(value, f"{where}: classification")
    if said.get("names") is not None:
        # A class derived from another is shown so.
        names = sources.listing(said["names"], f"{where}: names")
        return ": ".join(sources.text(name, f"{where}: names") for name in names) or None
    name = said.get("name")
    return None if name is None else sources.text(name, f"{where}: classification")


def _shapes(
    geometry: Mapping[str, Any], is_ellipse: bool, where: str, depth: int = 0
) -> Iterator[tuple[str, tuple[Points, ...], Ellipse | None]]:
    """Yield kind, rings and ellipse of what a geometry holds; neither of what has no area.

    Raises:
        UserError: it is of no kind of GeoJSON, or its coordinates are none.
    """
    kind = geometry.get("type")
    if kind in WITHOUT_AREA:
        yield str(kind).lower(), (), None
    elif kind == "GeometryCollection" and depth < DEPTH:
        for part in sources.listing(geometry.get("geometries"), f"{where}: geometries"):
            yield from _shapes(sources.table(part, where), False, where, depth + 1)
    elif kind in ("Polygon", "MultiPolygon"):
        given = sources.listing(geometry.get("coordinates"), f"{where}: coordinates")
        parts = [given] if kind == "Polygon" else given
        for part in parts:
            rings = tuple(_rings(part, where))
            if is_ellipse and len(parts) == 1 and rings:
                yield "ellipse", (), _ellipse(rings[0])
            else:
                yield str(kind).lower(), rings, None
    else:
        raise UserError(f"{where} has the unknown geometry {cut(repr(kind), 60)}")


def _rings(part: object, where: str) -> Iterator[Points]:
    for ring in sources.listing(part, f"{where}: coordinates"):
        pairs = sources.listing(ring, f"{where}: coordinates")
        # A third number is a height, which GeoJSON allows.
        flat = [pair[:2] if isinstance(pair, list) and len(pair) == 3 else pair for pair in pairs]
        points = sources.points(flat, f"{where}: coordinates")
        if len(points) > 2:
            yield points


def _ellipse(ring: Points) -> Ellipse | None:
    low, high = ring.min(axis=0), ring.max(axis=0)
    (x, y), (rx, ry) = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
    return Ellipse(x, y, rx, ry) if rx and ry else None


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as GeoJSON, a file a picture, in the folders of their pictures.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are drawn as ``Ignore*``.
    """
    for picture in pictures:
        file = folder / f"{stem_of(picture.picture)}.geojson"
        content = {"type": "FeatureCollection", "features": list(_written(picture, names))}
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(file, json.dumps(content, ensure_ascii=False) + "\n")


def _written(picture: Marked, names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    for number, pixels in picture.layers(names):
        label = IGNORED if number == IGNORE else names[number]
        colour = (128, 128, 128) if number == IGNORE else COLOURS[number % len(COLOURS)]
        for count, rings in enumerate(outlines.polygons(pixels)):
            closed = [np.concatenate([ring, ring[:1]]).astype(int).tolist() for ring in rings]
            # The same for the same mask; QuPath wants one that is nobody else's.
            own = uuid.uuid5(uuid.NAMESPACE_URL, f"{picture.picture}/{number}/{count}")
            yield {
                "type": "Feature",
                "id": str(own),
                "geometry": {"type": "Polygon", "coordinates": closed},
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": label, "color": list(map(int, colour))},
                },
            }
