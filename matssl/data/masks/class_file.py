"""Class files: ``classes.yaml`` or ``classes.csv`` names, merges and ignores values of masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data.masks.table import (
    SNAP_DISTANCE,
    SNAP_SHARE,
    ClassTable,
    MaskClass,
    Value,
    code_of,
    distance,
    show,
)

# Where no --classes names another one.
CLASS_FILES = ("classes.yaml", "classes.yml", "classes.csv")
Entries = list[tuple[str, tuple[Value, ...]]]


def class_file(classes: str | None, folder: Path | None) -> Path | None:
    """Return the class file that ``--classes`` names or that lies in the folder; None for none.

    Raises:
        UserError: ``--classes`` names a file that does not exist.
    """
    if classes is not None and classes.lower().endswith((".yaml", ".yml", ".csv")):
        path = Path(classes)
        if not path.is_file():
            raise UserError(f"there is no class file {path}")
        return path
    if classes is None and folder is not None:
        for name in CLASS_FILES:
            if (folder / name).is_file():
                return folder / name
    return None


def from_file(file: Path, counts: Counter[int], kind: str) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table a class file describes.

    YAML: ``classes: {name: value | [values] | rest}``, ``ignore: [values]``. A value is a grey
    value or a colour ("#rrggbb" or [r, g, b]); several values merge into one class.
    """
    if file.suffix == ".csv":
        entries, ignored, rest = _csv_classes(file, counts)
    else:
        entries, ignored, rest = _yaml_classes(file, kind)
    codes = {value: code_of(value) for _, values in entries for value in values}
    if file.suffix == ".csv" and not set(codes.values()) & set(counts):
        raise UserError(f"{file} lists no value that the masks hold")
    listed = [code_of(v) for _, values in entries for v in values] + [code_of(v) for v in ignored]
    twice = sorted({show(c, kind) for c in listed if listed.count(c) > 1})
    if twice:
        raise UserError(f"{file} lists {', '.join(twice)} more than once")
    strays = [c for c in counts if c not in listed]
    negative = tuple(sorted(c for c in strays if c < 0))
    strays = [c for c in strays if c >= 0]
    total = sum(counts.values())
    notes: list[str] = []
    snap = False
    if strays and rest is None:
        far = [
            c
            for c in strays
            if counts[c] >= SNAP_SHARE * total
            or min(distance(c, k) for k in listed) > SNAP_DISTANCE
        ]
        if far:
            raise UserError(
                f"the masks hold values that {file} does not list: "
                f"{', '.join(show(c, kind) for c in sorted(far)[:8])}; add them, or list them "
                "under ignore"
            )
        snap = True
        notes.append(f"{len(strays)} stray values are taken for the nearest listed one")
    sizes = [sum(counts[codes[v]] for v in values) for _, values in entries]
    if rest is not None:
        sizes[rest] += sum(counts[c] for c in strays)
    elif snap:
        for c in strays:
            near = min(codes.values(), key=lambda k: distance(c, k))
            place = next(i for i, (_, vs) in enumerate(entries) if near in map(code_of, vs))
            sizes[place] += counts[c]
    labelled = max(1, sum(sizes))
    classes = tuple(
        MaskClass(i, name, values, sizes[i], sizes[i] / labelled)
        for i, (name, values) in enumerate(entries)
    )
    notes.insert(0, f"class names from {file.name}")
    return ClassTable(kind, classes, (*ignored, *negative), rest, snap), tuple(notes)


def _yaml_classes(file: Path, kind: str) -> tuple[Entries, tuple[Value, ...], int | None]:
    content = textfiles.read_yaml(file)
    if not isinstance(content, dict) or not isinstance(content.get("classes"), (dict, list)):
        raise UserError(f"{file} must have a part 'classes:' with lines of the form name: value")
    listed = content["classes"]
    pairs = enumerate(listed) if isinstance(listed, list) else None
    items = [(str(n), i) for i, n in pairs] if pairs is not None else list(listed.items())
    entries: Entries = []
    rest = None
    for index, (name, value) in enumerate(items):
        if value == "rest":
            rest = index
            entries.append((str(name), ()))
        else:
            entries.append((str(name), _values(value, file, kind)))
    return entries, _values(content.get("ignore", []), file, kind), rest


def _csv_classes(
    file: Path, counts: Mapping[int, int]
) -> tuple[Entries, tuple[Value, ...], int | None]:
    """Read a table with the column name and one or more columns of values.

    Of several value columns the one that explains most pixels is meant. A row whose name says
    "ignore" lists values that count for nothing.
    """
    rows = textfiles.read_rows(file)
    starts = ("value", "grey", "gray", "label", "index", "class")
    columns = [c for c in (rows[0] if rows else {}) if c and c.lower().startswith(starts)]
    if not rows or "name" not in rows[0] or not columns:
        raise UserError(f"{file} needs the columns value and name")

    def read(column: str) -> list[tuple[str, tuple[Value, ...]]]:
        cells = [(row["name"], (row[column] or "").replace(";", " ").split()) for row in rows]
        return [(name, tuple(_value(word, file) for word in words)) for name, words in cells]

    def explained(column: str) -> int:
        return sum(counts.get(code_of(v), 0) for _, values in read(column) for v in values)

    entries = [(name, values) for name, values in read(max(columns, key=explained)) if values]
    ignored = tuple(v for name, values in entries if "ignore" in name.lower() for v in values)
    return [(n, v) for n, v in entries if "ignore" not in n.lower()], ignored, None


def _values(value: object, file: Path, kind: str) -> tuple[Value, ...]:
    if isinstance(value, list):
        if kind == "color" and len(value) == 3 and all(isinstance(v, int) for v in value):
            # Three numbers are a colour where masks are coloured, three class numbers elsewhere.
            if not all(v in range(256) for v in value):
                raise UserError(f"{file}: {value} is no colour; each number is from 0 to 255")
            return (f"#{value[0]:02x}{value[1]:02x}{value[2]:02x}",)
        return tuple(v for item in value for v in _values(item, file, kind))
    if isinstance(value, str):
        return tuple(_value(word, file) for word in value.replace(",", " ").split())
    return (_value(value, file),)


def _value(value: object, file: Path) -> Value:
    text = str(value).strip().lower()
    if re.fullmatch("#[0-9a-f]{6}", text):
        return text
    if re.fullmatch("-?[0-9]{1,9}", text):
        return int(text)
    raise UserError(
        f"{file}: {cut(repr(value), 40)} is neither a grey value nor a colour such as '#ff0000'"
    )
