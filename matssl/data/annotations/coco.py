"""COCO: one JSON file of many pictures; polygons or run lengths, in no order of depth.

The pixels of polygons are those whose centre lies inside, as in every format here; pycocotools
differs from that by at most 0.17 px along the outline.
"""

from __future__ import annotations

import functools
import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted, cut
from matssl.data.annotations import outlines, runs, sources
from matssl.data.annotations.drawing import (
    IGNORED,
    Annotations,
    Choices,
    Drawing,
    Marked,
    Shape,
    box,
    picture_name,
)
from matssl.data.annotations.raster import covered

FILE = "annotations.json"


def _is_one(path: Path) -> bool:
    if not any(sources.holds(path, (word,)) for word in ('"images"', '"image_id"')):
        return False
    # Many programs write the categories between the images and the annotations.
    return sources.holds(path, ('"categories"',), whole=True)


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds COCO's JSON."""
    return sources.recognised(path, (".json",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the COCO files of a folder hold.

    Raises:
        UserError: no such file, a damaged one, boxes without an outline.
    """
    found, notes = sources.chosen(path, (".json",), _is_one, "COCO")
    drawings: list[Drawing] = []
    labels: list[str] = []
    boxes = 0
    for file in found:
        content = sources.table(sources.read_json(file), str(file))
        names = _names(content, file)
        labels += names.values()
        held = _File(file, names, choices)
        drawings += held.drawings(content)
        boxes += held.boxes
    if boxes and not choices.boxes:
        raise UserError(
            f"{counted(boxes, 'annotation')} of {path} have a box and no outline: --boxes fill "
            "takes the whole box for the class, --boxes skip leaves them out"
        )
    return Annotations(tuple(drawings), tuple(dict.fromkeys(labels)), notes=notes)


def _names(content: Mapping[str, Any], file: Path) -> dict[Hashable, str]:
    found: dict[Hashable, str] = {}
    for at, value in enumerate(sources.listing(content.get("categories"), f"{file}: categories")):
        where = f"{file}, category {at + 1}"
        item = sources.table(value, where)
        number = sources.identity(item.get("id"), where)
        if number in found:
            raise UserError(f"{where}: another one has the id {cut(str(number), 60)}, too")
        found[number] = sources.label(item.get("name"), f"{where}: name")
    return found


class _File:
    """One file as it is read."""

    def __init__(self, file: Path, names: Mapping[Hashable, str], choices: Choices) -> None:
        self.file, self.names, self.choices = file, names, choices
        self.boxes = 0
        self.no_area: Counter[tuple[str, str]] = Counter()

    def drawings(self, content: Mapping[str, Any]) -> list[Drawing]:
        """Return what was drawn on every picture that the file lists."""
        names: dict[Hashable, str] = {}
        sizes: dict[Hashable, tuple[int, int]] = {}
        for at, value in enumerate(sources.listing(content.get("images"), f"{self.file}: images")):
            where = f"{self.file}, image {at + 1}"
            item = sources.table(value, where)
            number = sources.identity(item.get("id"), where)
            if number in names:
                raise UserError(f"{where}: another one has the id {cut(str(number), 60)}, too")
            if item.get("height") is not None and item.get("width") is not None:
                sizes[number] = sources.size(item["height"], item["width"], where)
            name = sources.text(item.get("file_name"), f"{where}: file_name")
            names[number] = picture_name(name)
        shapes: dict[Hashable, list[Shape]] = defaultdict(list)
        no_area: dict[Hashable, Counter[tuple[str, str]]] = defaultdict(Counter)
        listed = content.get("annotations", [])
        for at, value in enumerate(sources.listing(listed, f"{self.file}: annotations")):
            where = f"{self.file}, annotation {at + 1}"
            item = sources.table(value, where)
            number = sources.identity(item.get("image_id"), f"{where}: image_id")
            if number not in names:
                raise UserError(f"{where}: no image has the id {cut(str(number), 60)}")
            own = sources.identity(item.get("category_id"), f"{where}: category_id")
            if own not in self.names:
                raise UserError(f"{where}: no category has the id {cut(str(own), 60)}")
            self.no_area = no_area[number]
            value = item.get("segmentation")
            if isinstance(value, dict):
                size, shape = _runs(value, self.names[own], f"{where}: segmentation")
                told = sizes.setdefault(number, size)
                if told != size:
                    raise UserError(
                        f"{where}: run lengths of {size[0]} x {size[1]}, not {told[0]} x {told[1]}"
                    )
                shapes[number].append(shape)
            else:
                shapes[number] += self._shapes(item, self.names[own], where)
        return [
            Drawing(name, sizes.get(number), tuple(shapes[number]), self.file, no_area[number])
            for number, name in names.items()
        ]

    def _shapes(self, item: Mapping[str, Any], label: str, where: str) -> list[Shape]:
        value = item.get("segmentation")
        parts = sources.listing([] if value is None else value, f"{where}: segmentation")
        if all(part == [] for part in parts):
            return self._box(item, label, where)
        if not isinstance(parts[0], list):
            parts = [parts]
        found = []
        for part in parts:
            numbers = sources.listing(part, f"{where}: polygon")
            if len(numbers) % 2:
                raise UserError(f"{where}: a polygon has {len(numbers)} numbers, which is odd")
            pairs = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]
            ring = sources.points(pairs, f"{where}: polygon")
            if len(ring) > 2:
                found.append(Shape(label, "polygon", (ring,)))
            else:
                self.no_area["polygon", label] += 1
        return found

    def _box(self, item: Mapping[str, Any], label: str, where: str) -> list[Shape]:
        self.boxes += 1
        if self.choices.boxes != "fill":
            self.no_area["box", label] += 1
            return []
        numbers = sources.listing(item.get("bbox"), f"{where}: bbox")
        if len(numbers) != 4:
            raise UserError(f"{where}: its bbox has {len(numbers)} numbers, not 4")
        x, y, width, height = (sources.number(n, f"{where}: bbox") for n in numbers)
        return [Shape(label, "box", (box(x, y, x + width, y + height),))]


def _runs(value: Mapping[str, Any], label: str, where: str) -> tuple[tuple[int, int], Shape]:
    """Return the size of the picture that run lengths are of, and their shape."""
    said = sources.listing(value.get("size"), f"{where}: size")
    if len(said) != 2:
        raise UserError(f"{where}: its size has {len(said)} numbers, not height and width")
    size = sources.size(said[0], said[1], where)
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = runs.from_text(counts, where)
    else:
        counts = sources.listing(counts, f"{where}: counts")
    checked = runs.checked(counts, size[0] * size[1], where)
    return size, Shape(
        label, "run lengths", later=functools.partial(runs.columns, checked, size[0])
    )


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as one JSON file, an annotation for every part.

    Parts with holes are run lengths, all others polygons along the edges of pixels. All ids are
    from 1 on: evaluators take 0 for none.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are of the class ``ignore``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    ids = {number: at for at, number in enumerate((*names, IGNORE), 1)}
    ignored = False
    for picture in pictures:
        size = picture.mask.shape[0], picture.mask.shape[1]
        image = {"id": len(images) + 1, "file_name": picture.picture, "height": size[0]}
        images.append(image | {"width": size[1]})
        for number, pixels in picture.layers(names):
            ignored |= number == IGNORE
            for rings in outlines.polygons(pixels):
                annotation = _written(rings, size)
                annotation |= {"image_id": len(images), "category_id": ids[number], "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1} | annotation)
    listed = [
        {"id": ids[number], "name": name, "supercategory": ""} for number, name in names.items()
    ]
    if ignored and IGNORE not in names:
        listed.append({"id": ids[IGNORE], "name": IGNORED, "supercategory": ""})
    content = {"images": images, "categories": listed, "annotations": annotations}
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / FILE, json.dumps(content, ensure_ascii=False) + "\n")


def _written(rings: list[Any], size: tuple[int, int]) -> dict[str, Any]:
    patch = covered(Shape("", "", tuple(rings)), size)
    rows, columns = patch.pixels.shape
    segmentation: Any = [rings[0].ravel().tolist()]
    if len(rings) > 1:
        counts = runs.to_text(runs.down_columns(patch, size))
        segmentation = {"size": list(size), "counts": counts}
    return {
        "segmentation": segmentation,
        "area": int(np.count_nonzero(patch.pixels)),
        "bbox": [patch.column, patch.row, columns, rows],
    }
