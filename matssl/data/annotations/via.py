"""VGG Image Annotator, versions 1 and 2: one JSON file of many pictures. Read, not written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data.annotations import sources
from matssl.data.annotations.drawing import (
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Shape,
    box,
    picture_name,
)

PROJECT = "_via_img_metadata"
WITHOUT_AREA = ("polyline", "point", "line")


def _is_one(path: Path) -> bool:
    return sources.holds(path, (PROJECT,)) or sources.holds(
        path, ('"regions"', '"file_attributes"')
    )


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds VIA's JSON."""
    return sources.recognised(path, (".json",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the JSON files of a folder hold.

    Raises:
        UserError: no such file, a damaged one, several attributes of which one is the class.
    """
    found, notes = sources.chosen(path, (".json",), _is_one, "VIA")
    drawings: list[Drawing] = []
    labels: list[str] = []
    for file in found:
        content = sources.table(sources.read_json(file), str(file))
        pictures = sources.table(content.get(PROJECT, content), f"{file}: {PROJECT}")
        items = [(sources.table(v, f"{file}, {cut(key, 60)}"), key) for key, v in pictures.items()]
        regions = [_regions(item, f"{file}, {cut(key, 60)}") for item, key in items]
        attribute = _attribute([r for many in regions for r in many], choices, file)
        labels += _options(content, attribute)
        for (item, key), many in zip(items, regions, strict=True):
            where = f"{file}, {cut(key, 60)}"
            drawings.append(_drawing(item, many, attribute, choices, file, where))
    return Annotations(tuple(drawings), tuple(dict.fromkeys(labels)), notes=notes)


def _regions(item: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    value = item.get("regions", [])
    listed = list(value.values()) if isinstance(value, dict) else value
    many = sources.listing(listed, f"{where}: regions")
    return [sources.table(one, f"{where}, region {at + 1}") for at, one in enumerate(many)]


def _attribute(regions: list[dict[str, Any]], choices: Choices, file: Path) -> str:
    """Return the attribute that is the class; "" where regions have none."""
    names = Counter(
        name
        for region in regions
        if isinstance(region.get("region_attributes"), dict)
        for name in region["region_attributes"]
    )
    if choices.attribute:
        if names and choices.attribute not in names:
            known = ", ".join(cut(name, 40) for name in names)
            raise UserError(
                f"{file}: no region has the attribute {choices.attribute!r}, which --attribute "
                f"names; there are {known}"
            )
        return choices.attribute
    if len(names) > 1:
        known = ", ".join(f"{cut(name, 40)} ({n} regions)" for name, n in names.items())
        raise UserError(
            f"{file}: regions have several attributes, {known}; --attribute says which is the class"
        )
    return next(iter(names), "")


def _options(content: Mapping[str, Any], attribute: str) -> list[str]:
    """Return the values that a project lists for its attribute."""
    place: Any = content
    for key in ("_via_attributes", "region", attribute, "options"):
        place = place.get(key) if isinstance(place, dict) else None
    return [sources.label(name, "option") for name in place] if isinstance(place, dict) else []


def _drawing(
    item: Mapping[str, Any],
    regions: list[dict[str, Any]],
    attribute: str,
    choices: Choices,
    file: Path,
    where: str,
) -> Drawing:
    name = picture_name(sources.text(item.get("filename"), f"{where}: filename"))
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    for at, region in enumerate(regions):
        place = f"{where}, region {at + 1}"
        label = _label(region, attribute, choices, place)
        form = sources.table(region.get("shape_attributes"), f"{place}: shape_attributes")
        kind = sources.text(form.get("name"), f"{place}: name")
        shape = None if kind in WITHOUT_AREA else _shape(kind, form, label, place)
        if shape is None:
            no_area[kind, label] += 1
        else:
            shapes.append(shape)
    return Drawing(name, None, tuple(shapes), file, no_area)


def _label(region: Mapping[str, Any], attribute: str, choices: Choices, where: str) -> str:
    said = region.get("region_attributes") or {}
    value = sources.table(said, f"{where}: region_attributes").get(attribute)
    if isinstance(value, dict):
        # Boxes that can be ticked.
        ticked = [name for name, on in value.items() if on]
        if len(ticked) > 1:
            raise UserError(f"{where} has the classes {cut(', '.join(ticked[:5]))}; leave it one")
        value = ticked[0] if ticked else None
    return sources.label_or(value, choices.label, where)


def _shape(kind: str, form: Mapping[str, Any], label: str, where: str) -> Shape | None:
    """Return a shape; None of one without an area."""
    if kind == "polygon":
        x, y = (sources.listing(form.get(f"all_points_{a}"), f"{where}: points") for a in "xy")
        if len(x) != len(y):
            raise UserError(f"{where}: {len(x)} x and {len(y)} y of its points")
        ring = sources.points([list(pair) for pair in zip(x, y, strict=True)], where)
        return Shape(label, "polygon", (ring,)) if len(ring) > 2 else None

    def part(key: str) -> float:
        return sources.number(form.get(key), f"{where}: {key}")

    if kind == "rect":
        x0, y0 = part("x"), part("y")
        return Shape(label, "rect", (box(x0, y0, x0 + part("width"), y0 + part("height")),))
    if kind == "circle":
        radius = abs(part("r"))
        return sources.ellipse(label, Ellipse(part("cx"), part("cy"), radius, radius), where)
    if kind == "ellipse":
        degrees = math.degrees(sources.number(form.get("theta") or 0, f"{where}: theta"))
        radii = abs(part("rx")), abs(part("ry"))
        return sources.ellipse(label, Ellipse(part("cx"), part("cy"), *radii, degrees), where)
    raise UserError(f"{where} is of the kind {cut(repr(kind), 40)}, which VIA does not have")
