"""Label Studio: a JSON list of tasks; polygons in percent, and brushes as packed bits.

Predictions and cancelled annotations never count. Where a task has several annotations, somebody
has to say whose counts.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted, cut
from matssl.data.annotations import runs, sources
from matssl.data.annotations.drawing import (
    IGNORED,
    Annotations,
    Choices,
    Drawing,
    Ellipse,
    Marked,
    Shape,
    box,
    picture_name,
    turned,
)
from matssl.data.annotations.pairing import UPLOADED
from matssl.data.readers import is_image_name

FILE, CONFIG = "tasks.json", "label_config.xml"
SHAPES = ("polygon", "rectangle", "ellipse", "brush")
WITHOUT_AREA = (
    *("keypoint", "vector", "labels", "choices", "textarea", "number", "rating"),
    *("taxonomy", "relation", "pairwise", "datetime", "ranker"),
)
PICTURE_KEYS = ("image", "img", "picture")


def _is_one(path: Path) -> bool:
    if sources.holds(path, ('"from_name"',)) or sources.holds(path, ('"original_width"',)):
        return True
    return sources.holds(path, ('"annotations"', '"data"', '"predictions"'))


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds Label Studio's JSON or JSON-MIN."""
    return sources.recognised(path, (".json",), _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the JSON files of a folder hold.

    Raises:
        UserError: no such file, a damaged one, a task of which several annotations count.
    """
    found, notes = sources.chosen(path, (".json",), _is_one, "Label Studio")
    drawings: list[Drawing] = []
    left: Counter[str] = Counter()
    several: list[str] = []
    for file in found:
        content = sources.read_json(file)
        tasks = [content] if isinstance(content, dict) else sources.listing(content, str(file))
        # JSON-MIN has an entry for each annotation, and several entries for one picture.
        minimal: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
        for at, value in enumerate(tasks):
            where = f"{file}, task {at + 1}"
            task = sources.table(value, where)
            names = _names(task, choices.attribute, where)
            if not ("annotations" in task or "completions" in task or "data" in task):
                minimal.setdefault(names[0], []).append((task, where))
                continue
            result, why = _result(task, choices.annotator, where, left)
            several += [f"{cut(names[0])} ({why})"] if why else []
            drawings.append(_drawing(result, names, file, choices, where))
        for own in minimal.values():
            good, why = _counting([task for task, _ in own], choices.annotator)
            entry, where = next(one for one in own if not good or one[0] is good[0])
            names, result = _names(entry, choices.attribute, where), _minimal(entry, where)
            several += [f"{cut(names[0])} ({why})"] if why else []
            drawings.append(_drawing(result, names, file, choices, where))
    if several:
        raise UserError(
            f"{counted(len(several), 'picture')} of {path} with several annotations (first: "
            f"{several[0]}): --annotator says whose counts: an id or e-mail, newest or oldest"
        )
    told = [f"{counted(n, what)} left out" for what, n in left.items()]
    return Annotations(tuple(drawings), notes=(*notes, *told))


def _names(task: Mapping[str, Any], key: str, where: str) -> list[str]:
    """Return how the picture of a task may be called."""
    data = task.get("data")
    data = sources.table(data, f"{where}: data") if data is not None else task
    named = {
        name: address(value)
        for name, value in data.items()
        if isinstance(value, str) and name not in ("file_upload", "created_at", "updated_at")
    }
    if key:
        if key not in named:
            raise UserError(f"{where}: its data have no text {key!r}, which --attribute names")
        ways = [named[key]]
    else:
        ways = [way for way in named.values() if is_image_name(way.rsplit("/", 1)[-1])]
        preferred = [named[name] for name in PICTURE_KEYS if name in named]
        ways = preferred[:1] or ways
    if not ways:
        raise UserError(f"{where}: none of its data is a picture; --attribute KEY names the one")
    if len(set(ways)) > 1:
        raise UserError(
            f"{where}: its data name several pictures ({', '.join(cut(w, 60) for w in ways[:3])}); "
            "--attribute KEY names the one"
        )
    folder, _, last = picture_name(ways[0]).rpartition("/")
    plain = UPLOADED.sub("", last)
    uploaded = plain != last
    # The folders of uploads are the server's own.
    return list(dict.fromkeys([plain if uploaded else picture_name(ways[0]), f"{folder}/{last}"]))


def address(text: str) -> str:
    """Return the path of a picture in an address as Label Studio writes it, unescaped."""
    if not re.match(r"^([a-z][a-z0-9+.-]+://|/data/|/tasks/|data/)", text, re.I):
        return text
    parts = urlsplit(text)
    asked = parse_qs(parts.query)
    if "d" in asked:
        return asked["d"][0]
    if "fileuri" in asked:
        # Of a picture in cloud storage.
        try:
            return unquote(urlsplit(base64.b64decode(asked["fileuri"][0]).decode()).path)
        except (binascii.Error, ValueError):
            return unquote(parts.path)
    return unquote(parts.path)


def _result(
    task: Mapping[str, Any], annotator: str, where: str, left: Counter[str]
) -> tuple[Sequence[Any], str]:
    """Return the result that counts; a sentence where it is open which of several does."""
    given = task.get("annotations", task.get("completions"))
    listed = sources.listing([] if given is None else given, f"{where}: annotations")
    items = [sources.table(value, f"{where}: annotation {i + 1}") for i, value in enumerate(listed)]
    good = [item for item in items if item.get("was_cancelled") is not True]
    left["cancelled annotation"] += len(items) - len(good)
    guesses = task.get("predictions")
    left["prediction"] += len(guesses) if isinstance(guesses, list) else 0
    for key in [key for key, number in left.items() if not number]:
        del left[key]
    counts, why = _counting(good, annotator)
    return (sources.listing(counts[0].get("result"), f"{where}: result") if counts else []), why


def _counting(
    good: Sequence[Mapping[str, Any]], annotator: str
) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Return the one of several annotations that counts; a sentence where that is open."""
    if len(good) > 1 and annotator in ("newest", "oldest"):
        times = [moment for item in good if (moment := _moment(item)) is not None]
        if len(times) < len(good):
            return [], "of which not all bear a date"
        wanted = max(times) if annotator == "newest" else min(times)
        good = [item for item, time in zip(good, times, strict=True) if time == wanted]
    elif len(good) > 1 and annotator:
        good = [item for item in good if annotator in _who(item)] or good
    if len(good) > 1:
        said = ", ".join("/".join(_who(item)) or "?" for item in good[:5])
        return [], f"by {said}"
    return good, ""


def _moment(item: Mapping[str, Any]) -> datetime | None:
    """Return when an annotation was made or changed; None where it does not say so."""
    said = str(item.get("updated_at") or item.get("created_at") or "")
    try:
        found = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", said.strip()))
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _who(item: Mapping[str, Any]) -> list[str]:
    # The second is JSON-MIN's.
    by = item.get("completed_by", item.get("annotator"))
    values = [by.get("id"), by.get("email")] if isinstance(by, dict) else [by]
    return [cut(str(value), 60) for value in values if value is not None]


def _minimal(task: Mapping[str, Any], where: str) -> list[Any]:
    """Return the results of JSON-MIN, which has the name of the control for a key."""
    found = []
    for name, values in task.items():
        if not isinstance(values, list):
            continue
        for at, value in enumerate(values):
            if not isinstance(value, dict) or "original_width" not in value:
                continue
            kinds = [key for key in value if key.endswith("labels") and key != "labels"]
            if len(kinds) != 1:
                raise UserError(
                    f"{where}: {cut(name, 40)} {at + 1} is JSON-MIN without its label; export JSON"
                )
            found.append({**value, "type": kinds[0], "value": value})
    return found


def _drawing(
    result: Sequence[Any], names: Sequence[str], file: Path, choices: Choices, where: str
) -> Drawing:
    groups: dict[object, list[dict[str, Any]]] = {}
    for at, value in enumerate(result):
        item = sources.table(value, f"{where}, result {at + 1}")
        key = item.get("id")
        groups.setdefault(key if isinstance(key, (str, int)) else ("", at), []).append(item)
    size: tuple[int, int] | None = None
    shapes: list[Shape] = []
    no_area: Counter[tuple[str, str]] = Counter()
    for at, items in enumerate(groups.values()):
        place = f"{where}, region {at + 1}"
        labels = _labels(items, place)
        drawn = [item for item in items if _kind(item) in SHAPES]
        for item in items:
            kind = _kind(item)
            if kind not in SHAPES + WITHOUT_AREA:
                raise UserError(
                    f"{place} is of the type {cut(repr(item.get('type')), 40)}, not read"
                )
        if not drawn:
            no_area[_kind(items[0]), labels[0] if labels else "no label"] += 1
            continue
        if len(labels) > 1:
            raise UserError(f"{place} has the labels {cut(', '.join(labels))}; leave it one")
        label = sources.label_or(labels[0] if labels else None, choices.label, place)
        # Mostly one; parts that a program gave the same id are all drawn.
        for item in drawn:
            own = sources.size(item.get("original_height"), item.get("original_width"), place)
            if size is not None and own != size:
                raise UserError(
                    f"{place} is of {own[0]} x {own[1]} pixels, the one before of others"
                )
            size = own
            if item.get("image_rotation") not in (None, 0):
                raise UserError(
                    f"{place} was drawn on a rotated picture (image_rotation), not read"
                )
            value = sources.table(item.get("value"), place)
            shape = _shape(_kind(item), value, label, size, place)
            if shape is None:
                no_area[_kind(item), label] += 1
            else:
                shapes.append(shape)
    return Drawing(names[0], size, tuple(shapes), file, no_area, tuple(names[1:]))


def _kind(item: Mapping[str, Any]) -> str:
    kind = str(item.get("type"))
    return kind if kind == "labels" else kind.removesuffix("labels")


def _labels(items: Sequence[Mapping[str, Any]], where: str) -> list[str]:
    """Return the labels of the results of one region: of its tool, or of a control beside it."""
    found: list[str] = []
    for item in items:
        kind, value = str(item.get("type")), item.get("value")
        if kind.endswith("labels") and isinstance(value, dict) and value.get(kind) is not None:
            listed = sources.listing(value[kind], f"{where}: {kind}")
            found += [sources.label(name, f"{where}: label") for name in listed]
    return list(dict.fromkeys(found))


def _shape(
    kind: str, value: Mapping[str, Any], label: str, size: tuple[int, int], where: str
) -> Shape | None:
    """Return a shape; None of one without an area."""
    height, width = size
    if kind == "brush":
        data = value.get("rle")
        if value.get("format", "rle") != "rle" or not isinstance(data, list):
            raise UserError(f"{where}: its brush is not of the format rle")
        try:
            packed = bytes(data)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: its rle is no list of bytes") from error
        return Shape(label, "brush", later=functools.partial(runs.alpha, packed, size, where))
    if kind == "polygon":
        points = sources.points(value.get("points"), f"{where}: points")
        if len(points) < 3 or value.get("closed") is False:
            return None
        return Shape(label, "polygon", (points * (width / 100, height / 100),))

    def part(key: str, whole: int) -> float:
        return sources.number(value.get(key), f"{where}: {key}") * whole / 100

    x, y = part("x", width), part("y", height)
    degrees = sources.number(value.get("rotation") or 0, f"{where}: rotation")
    if kind == "ellipse":
        rx, ry = part("radiusX", width), part("radiusY", height)
        return sources.ellipse(label, Ellipse(x, y, abs(rx), abs(ry), degrees), where)
    ring = box(x, y, x + part("width", width), y + part("height", height))
    return Shape(label, "rectangle", (turned(ring, degrees, x, y) if degrees else ring,))


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as a list of tasks with a brush for every class, and the labelling interface.

    The pictures are addressed as those of a local storage.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels are of the class ``ignore``.
    """
    tasks = []
    labels = dict(names)
    for number, picture in enumerate(pictures, 1):
        rows, columns = picture.mask.shape
        result = [
            {
                **{"id": f"p{number}c{value}", "type": "brushlabels", "origin": "manual"},
                **{"from_name": "tag", "to_name": "image", "image_rotation": 0},
                **{"original_width": columns, "original_height": rows},
                "value": {
                    "format": "rle",
                    "rle": np.frombuffer(runs.brush(pixels), np.uint8).tolist(),
                    "brushlabels": [labels.setdefault(value, IGNORED)],
                },
            }
            for value, pixels in picture.layers(names)
        ]
        way = f"/data/local-files/?d={quote(picture.picture)}"
        task = {"id": number, "data": {"image": way}, "predictions": []}
        tasks.append(task | {"annotations": [{"result": result, "was_cancelled": False}]})
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / FILE, json.dumps(tasks, ensure_ascii=False) + "\n")
    listed = "".join(f"\n    <Label value={quoteattr(name)}/>" for name in labels.values())
    view = (
        '<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="tag" toName="image">'
    )
    atomic_write_text(folder / CONFIG, f"{view}{listed}\n  </BrushLabels>\n</View>\n")
