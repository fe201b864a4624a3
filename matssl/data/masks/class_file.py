"""Class files: ``classes.yaml`` or ``classes.csv`` names, merges and ignores values of masks.

Tables of colours in Python and JSON files are read in :mod:`matssl.data.masks.mapping`.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.paths import CLASS_ENDINGS
from matssl.core.wording import cut
from matssl.data.masks.conventions import Agreed, files
from matssl.data.masks.heaps import HARDLY, NOISE, edges_are_few
from matssl.data.masks.mapping import is_mapping, read_mapping, strays
from matssl.data.masks.survey import Survey, Total, counted, total
from matssl.data.masks.table import HALF_WAY, SNAP_DISTANCE, ClassTable, MaskClass
from matssl.data.masks.values import RANGE, Value, code_of, shown, span

# A value that is more frequent is no stray.
SNAP_SHARE = 0.01
# Highest grey value of a range.
HIGHEST = 65_535
WHITE = 255
# Where no --classes names another one.
CLASS_FILES = ("classes.yaml", "classes.yml", "classes.csv")
Entries = list[tuple[str, tuple[Value, ...]]]


def class_file(classes: str | None, folder: Path | None) -> Path | None:
    """Return the class file that ``--classes`` names or that lies in the folder; None for none.

    Raises:
        UserError: ``--classes`` names a file that does not exist.
    """
    if classes is not None and classes.lower().endswith(CLASS_ENDINGS):
        path = Path(classes)
        if not path.is_file():
            raise UserError(f"there is no class file {path}")
        return path
    if classes is None and folder is not None and folder.is_dir():
        # Windows writes what it likes in capitals.
        there = {path.name.lower(): path for path in folder.iterdir() if path.is_file()}
        return next((there[name] for name in CLASS_FILES if name in there), None)
    return None


def class_home(root: Path, paths: Sequence[Path]) -> Path:
    """Return the folder whose class file says what masks mean: that of the data set, or theirs.

    Args:
        root: folder of the data set; its class file goes first.
        paths: of the masks. Where none lies in the root, a class file in the folder that holds
            them all is meant: importing annotations writes it there.
    """
    if not paths or not root.is_dir() or class_file(None, root) is not None:
        return root
    home = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return home if class_file(None, home) is not None else root


def values_by_name(file: Path) -> dict[str, tuple[Value, ...]]:
    """Return what a class file says by itself, without masks; () for the rest.

    Raises:
        UserError: the file is none, or names a class twice.
    """
    is_csv = file.suffix.lower() == ".csv"
    entries, ignored, _ = _csv_classes(file, {}) if is_csv else _yaml_classes(file, "index")
    _refuse_overlaps(file, [value for _, values in entries for value in values] + list(ignored))
    twice = [name for name, _ in entries if [n for n, _ in entries].count(name) > 1]
    if twice:
        raise UserError(f"{file} names {cut(repr(twice[0]))} twice")
    return dict(entries)


def from_file(file: Path, agreed: Agreed) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table a class file describes.

    YAML: ``classes: {name: value | [values] | rest}``, ``ignore: [values] | rest``. A value is a
    grey value, a range of them ("128-255") or a colour ("#rrggbb" or [r, g, b]); several values
    merge into one class. Values of soft edges are taken for the nearest listed one, unless the rest
    is a class or ignored; a table of colours ignores it.

    Args:
        file: YAML, CSV, or a table of colours.
        agreed: the masks.

    Raises:
        UserError: the file is none, or does not fit the masks.
    """
    kind = "color" if agreed.color else "index"
    surveys = list(agreed.surveys)
    rest: int | None
    if is_mapping(file):
        (entries, ignored), rest = read_mapping(file), IGNORE
        kind = "color"
    elif file.suffix.lower() == ".csv":
        entries, ignored, rest = _csv_classes(file, _counts(total(surveys)))
    else:
        entries, ignored, rest = _yaml_classes(file, kind)
    listed = [value for _, values in entries for value in values] + list(ignored)
    _refuse_overlaps(file, listed)
    below = {code_of(v) for v in listed}
    negative = tuple(v for v in agreed.ignored if v < 0 and v not in below)
    table = ClassTable(
        kind,
        tuple(MaskClass(i, name, values) for i, (name, values) in enumerate(entries)),
        (*ignored, *negative),
        rest,
        alpha=agreed.alpha,
        palette=agreed.palette,
        any_white=True,
    )
    notes = [f"class names from {file.name}", *agreed.notes, *_unlabelled(table, surveys, file)]
    scaled = [s.renumbered(table.codes(s.values, str(s.path))) for s in surveys]
    other = [
        s.path
        for s, own in zip(surveys, scaled, strict=True)
        if kind == "index" and not np.array_equal(s.values, own.values)
    ]
    table = replace(table, any_white=bool(other))
    if other:
        notes.append(f"{files(other)}: values are read on the scale of {file.name}")
    if rest is None:
        table, found = _with_strays(table, scaled, file)
        notes += found
    elif rest == IGNORE:
        notes += strays(table, scaled, file)
    return counted(table, surveys), tuple(notes)


def _unlabelled(table: ClassTable, surveys: list[Survey], file: Path) -> list[str]:
    """Return a warning where a mask has 255, which often means not labelled, beside its own class.

    Who lists 255 with a class number means masks of 0 and 255 beside those of 0 and 1; a mask that
    holds both is half labelled.
    """
    white = next((c for c in table.classes if WHITE in c.values), None)
    if white is None:
        return []
    name, numbers = white.name, set(map(code_of, white.values)) - {WHITE}
    both = [s.path for s in surveys if WHITE in s.lit and numbers & s.lit and not s.lossy]
    if not both:
        return []
    return [
        f"{files(both)}: 255 stands beside class numbers, where it often means not labelled, and "
        f"{file.name} counts it as {name}; list it under ignore, or save these masks otherwise"
    ]


def _with_strays(
    table: ClassTable, surveys: list[Survey], file: Path
) -> tuple[ClassTable, list[str]]:
    """Return the table, made for soft edges where the masks have such, and a note.

    Raises:
        UserError: values that are drawn and not listed, or edges of which the class is not clear.
    """
    summed = total(surveys)
    strays = ~table.lists(summed.values)
    if not strays.any():
        return table, []
    values, sizes = summed.values[strays], summed.sizes[strays]
    distances = table.distances(values)
    frequent = sizes >= SNAP_SHARE * summed.pixels
    near = distances <= SNAP_DISTANCE
    # Noise of JPEG may be frequent where no other class is near.
    noise = (distances <= NOISE) & (table.gap() > 2 * SNAP_DISTANCE)
    drawn = summed.drawn[strays] >= HARDLY * sizes
    odd = (frequent & ~noise) | (~near & drawn)
    if odd.any():
        raise UserError(
            f"the masks hold values that {file} does not list: "
            f"{shown(values[odd].tolist(), table.kind)}; add them, alone or as a range "
            "(particle: 128-255), or list them under ignore"
        )
    soft = replace(table, snap=SNAP_DISTANCE if near.all() else HALF_WAY)
    unclear = not near.all() and table.num_classes + bool(table.ignore_values) > 2
    if unclear and not edges_are_few(surveys, soft.decode, table.num_classes, table.kind):
        remedy = f"give ranges in {file.name} (particle: 128-255), or save them without soft edges"
        if table.kind == "color":
            remedy = "export them anew as PNG: JPEG, smoothing and resizing mix the colours"
        raise UserError(
            f"the masks are soft: the edge of two classes has the values of a third; {remedy}"
        )
    share = 100 * sizes.sum() / max(1, summed.pixels)
    found = [s.path for s in surveys if set(values.tolist()) & set(s.values.tolist())]
    return soft, [
        f"{files(found)}: {len(values)} stray values ({share:.2f} % of the pixels) are taken for "
        "the nearest listed one"
    ]


def _counts(summed: Total) -> dict[int, int]:
    return dict(zip(summed.values.tolist(), summed.sizes.tolist(), strict=True))


def _refuse_overlaps(file: Path, listed: list[Value]) -> None:
    spans = sorted((span(value), value) for value in listed)
    for (first, one), (second, other) in itertools.pairwise(spans):
        if first[1] >= second[0]:
            both = f"{one} and {other} overlap" if one != other else f"{one} is listed twice"
            raise UserError(f"{file} lists a value more than once: {both}")


def _yaml_classes(file: Path, kind: str) -> tuple[Entries, tuple[Value, ...], int | None]:
    content = textfiles.read_yaml(file, "the class file (--classes)")
    if not isinstance(content, dict) or not isinstance(content.get("classes"), (dict, list)):
        raise UserError(f"{file} must have a part 'classes:' with lines of the form name: value")
    listed = content["classes"]
    if isinstance(listed, list) and any(isinstance(name, bool) for name in listed):
        raise UserError(f"{file} lists yes, no, true or false as a name; write it in quotes: 'no'")
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
    ignored = content.get("ignore", [])
    words = ignored if isinstance(ignored, list) else [ignored]
    if "rest" in words:
        if rest is not None:
            raise UserError(f"{file} gives the rest to a class and ignores it; keep one of both")
        # Whatever is not listed counts for nothing, and is counted.
        rest, ignored = IGNORE, [word for word in words if word != "rest"]
    return entries, _values(ignored, file, kind), rest


def _csv_classes(
    file: Path, counts: Mapping[int, int]
) -> tuple[Entries, tuple[Value, ...], int | None]:
    """Read a table with the column name and one or more columns of values.

    Of several value columns the one that explains most pixels is meant. A row whose name says
    "ignore" lists values that count for nothing.
    """
    rows = textfiles.read_rows(file, "the class file (--classes)")
    starts = ("value", "grey", "gray", "label", "index", "class")
    columns = [c for c in (rows[0] if rows else {}) if c and c.lower().startswith(starts)]
    named = next((c for c in (rows[0] if rows else {}) if c.lower() == "name"), None)
    if named is None or not columns:
        raise UserError(f"{file} needs the columns value and name")

    def read(column: str) -> list[tuple[str, tuple[Value, ...]]]:
        cells = [(row[named], (row[column] or "").replace(";", " ").split()) for row in rows]
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
        words = re.sub(r"\s*-\s*(?=\d)", "-", value) if RANGE.search(value) else value
        return tuple(_value(word, file) for word in words.replace(",", " ").split())
    return (_value(value, file),)


def _value(value: object, file: Path) -> Value:
    text = str(value).strip().lower()
    if re.fullmatch("#[0-9a-f]{6}", text):
        return text
    if re.fullmatch("-?[0-9]{1,9}", text):
        return int(text)
    found = RANGE.fullmatch(text)
    if found and int(found[1]) <= int(found[2]) <= HIGHEST:
        return f"{int(found[1])}-{int(found[2])}"
    raise UserError(
        f"{file}: {cut(repr(value), 40)} is neither a grey value nor a colour such as "
        "'#ff0000', nor a range such as 128-255"
    )
