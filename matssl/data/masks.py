"""Mask files become class indices by one table, found from all masks of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data import readers

Array = NDArray[Any]
IGNORE = 255
MAX_CLASSES = 64
# --classes binary: every value but 0 is one class.
BINARY = "binary"
# JPEG and resampling shift colours by less than this.
SNAP_DISTANCE = 32
SNAP_SHARE = 0.01
Value = int | str


@dataclass(frozen=True)
class MaskClass:
    """One class.

    Attributes:
        index: number in predictions, from 0.
        name: what it is called in tables and pictures.
        values: the grey values (int) or colours ("#rrggbb") that mean it in mask files.
        pixels: how many pixels of it the masks hold.
        share: of all labelled pixels, 0 to 1.
    """

    index: int
    name: str
    values: tuple[Value, ...]
    pixels: int = 0
    share: float = 0.0


@dataclass(frozen=True)
class ClassTable:
    """What the values in mask files mean.

    Attributes:
        kind: "index" (grey values or palette indices) or "color".
        classes: ordered by index.
        ignore_values: values whose pixels count for nothing.
        rest_index: class of all values that no class lists (a mask drawn over the micrograph);
            None where such a value is an error.
        snap: whether colours near a listed one are taken for it.
    """

    kind: str
    classes: tuple[MaskClass, ...]
    ignore_values: tuple[Value, ...] = ()
    rest_index: int | None = None
    snap: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def binary(self) -> bool:
        """Whether black is one class and every other value the other, as in ``binary_table``."""
        values = [c.values for c in self.classes]
        return (
            values in ([(0,), ()], [("#000000",), ()])
            and self.rest_index == 1
            and not self.ignore_values
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of the indices."""
        return tuple(c.name for c in self.classes)

    def decode(self, raw: Array, source: str = "mask") -> NDArray[np.uint8]:
        """Return uint8 (H, W): class index, or 255 where the pixel is to be ignored.

        Args:
            raw: (H, W) integers or (H, W, 3 | 4) colours, as ``readers.read_mask`` gives them.
            source: named in errors.

        Raises:
            UserError: a value or colour that no class lists.
        """
        raw = flatten(raw)
        if self.binary:
            # The same for numbers and colours, so no other mask has to be looked at.
            return (raw if raw.ndim == 2 else raw.any(axis=2)).astype(bool).astype(np.uint8)
        if raw.ndim == 3 and self.kind == "index":
            raise UserError(f"{source} is a colour mask; the other masks hold class numbers")
        if raw.ndim == 2 and self.kind == "color":
            raw = np.repeat(to_8_bit(raw)[..., None], 3, axis=2)
        codes = pack(raw)
        values, places = np.unique(codes, return_inverse=True)
        table = self._lookup(values, source)
        return table[places].reshape(codes.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        values = asdict(self)
        values["classes"] = [{**c, "values": list(c["values"])} for c in values["classes"]]
        values["ignore_values"] = list(self.ignore_values)
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ClassTable:
        """Return the table that :meth:`to_dict` wrote."""
        classes = tuple(MaskClass(**{**c, "values": tuple(c["values"])}) for c in values["classes"])
        return ClassTable(
            kind=values["kind"],
            classes=classes,
            ignore_values=tuple(values["ignore_values"]),
            rest_index=values["rest_index"],
            snap=values.get("snap", False),
        )

    def describe(self) -> str:
        """Return the table as text: class, name, value or colour, pixels, share."""
        width = max([len(c.name) for c in self.classes] + [4])
        lines = [f"  {'class':>5}  {'name':<{width}}  {'value':<16} {'pixels':>12}  {'share':>7}"]
        for c in self.classes:
            shown = ", ".join(str(v) for v in c.values)
            if c.index == self.rest_index:
                shown = "all others" if not shown else f"{shown}, all others"
            lines.append(
                f"  {c.index:>5}  {c.name:<{width}}  {shown:<16} {c.pixels:>12,}"
                f"  {100 * c.share:6.2f}%"
            )
        if self.ignore_values:
            lines.append(f"  ignored: {', '.join(str(v) for v in self.ignore_values)}")
        return "\n".join(lines)

    def _lookup(self, codes: Array, source: str) -> NDArray[np.uint8]:
        known: dict[int, int] = {}
        for c in self.classes:
            known.update({_code(value): c.index for value in c.values})
        known.update({_code(value): IGNORE for value in self.ignore_values})
        result = np.full(len(codes), IGNORE, np.uint8)
        strays = []
        for place, code in enumerate(codes.tolist()):
            if code in known:
                result[place] = known[code]
            elif self.rest_index is not None:
                result[place] = self.rest_index
            else:
                near = _nearest(code, known) if self.snap else None
                if near is None:
                    strays.append(show(code, self.kind))
                else:
                    result[place] = known[near]
        if strays:
            raise UserError(
                f"{source} holds values that no class lists: {', '.join(strays[:8])}"
                f"{' ...' if len(strays) > 8 else ''}; name them in classes.yaml or --classes"
            )
        return result


def flatten(raw: Array) -> Array:
    """Return (H, W) or (H, W, 3): full alpha dropped, equal channels merged.

    16-bit colours that use the full range become 8-bit ones; a micrograph may show through.
    """
    if raw.ndim == 3 and raw.shape[2] == 4:
        raw = raw[..., :3]
    if raw.ndim == 3:
        if raw.dtype != np.uint8:
            raw = to_8_bit(raw)
        if (raw == raw[..., :1]).all():
            raw = raw[..., 0]
    return raw


def to_8_bit(raw: Array) -> NDArray[np.uint8]:
    """Return 16-bit grey or colour values as 8-bit ones; full stays full, zero stays zero."""
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype == np.uint16:
        return (raw >> 8).astype(np.uint8)
    return np.clip(raw, 0, 255).astype(np.uint8)


def pack(raw: Array) -> NDArray[np.int64]:
    """Return one number per pixel: the value itself, or 0x1rrggbb for a colour."""
    if raw.ndim == 2:
        return raw.astype(np.int64)
    r, g, b = (raw[..., i].astype(np.int64) for i in range(3))
    return (1 << 24) | (r << 16) | (g << 8) | b


def show(code: int, kind: str = "index") -> str:
    """Return a packed value as people write it."""
    return f"#{code & 0xFFFFFF:06x}" if code >= 1 << 24 and kind == "color" else str(code)


def find_table(
    mask_paths: Sequence[Path], classes: str | None = None, folder: Path | None = None
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the class table of these masks, and notes in words.

    Args:
        mask_paths: every mask of the data set.
        classes: ``--classes``: a YAML file, names in order separated by commas, or "binary".
        folder: the data set's folder, where a classes.yaml or classes.csv may lie.

    Raises:
        UserError: no two classes, strange values, or a class file that does not fit.
    """
    counts: Counter[int] = Counter()
    kinds: Counter[str] = Counter()
    gray_in_color = 0
    total = 0
    for path in mask_paths:
        raw = flatten(readers.read_mask(path))
        codes = pack(raw)
        kinds["color" if raw.ndim == 3 else "index"] += 1
        if raw.ndim == 3:
            gray_in_color += int(((raw == raw[..., :1]).all(axis=2)).sum())
        values, sizes = np.unique(codes, return_counts=True)
        counts.update(dict(zip(values.tolist(), sizes.tolist(), strict=True)))
        total += codes.size
    if kinds["color"] and kinds["index"]:
        # Black-and-white masks beside coloured ones: all become colours.
        merged: Counter[int] = Counter()
        for code, size in counts.items():
            gray = min(max(code, 0), 255)
            merged[code if code >= 1 << 24 else (1 << 24) | gray * 0x010101] += size
        counts = merged
    kind = "color" if kinds["color"] else "index"
    file = _class_file(classes, folder)
    if file is not None:
        table, notes = _from_file(file, counts, kind)
    elif classes == BINARY:
        table, notes = _binary_table(counts), ()
    elif kind == "color":
        table, notes = _color_table(counts, total, gray_in_color)
    else:
        table, notes = _index_table(counts, total)
    if classes is not None and classes != BINARY and file is None:
        table = _renamed(table, classes)
    if not any(c.pixels for c in table.classes):
        raise UserError("every pixel of every mask is to be ignored; there is nothing to learn")
    present = [c for c in table.classes if c.pixels]
    if len(present) < 2:
        raise UserError(
            f"all masks hold one class only ({present[0].name}); at least two are needed"
        )
    return table, notes


def binary_table() -> ClassTable:
    """Return the table of two classes: black is background, every other value foreground."""
    classes = (MaskClass(0, "background", (0,)), MaskClass(1, "foreground", ()))
    return ClassTable("index", classes, rest_index=1)


def _binary_table(counts: Counter[int]) -> ClassTable:
    table = binary_table()
    dark = counts[0] + counts[_code("#000000")]
    total = max(1, sum(counts.values()))
    sizes = (dark, sum(counts.values()) - dark)
    classes = tuple(
        replace(c, pixels=n, share=n / total) for c, n in zip(table.classes, sizes, strict=True)
    )
    return replace(table, classes=classes)


def _index_table(counts: Counter[int], total: int) -> tuple[ClassTable, tuple[str, ...]]:
    notes: list[str] = []
    ignored = tuple(sorted(v for v in counts if v < 0))
    values = sorted(v for v in counts if v >= 0)
    snap = False
    if 255 in values and set(values) - {255} and _is_counting([v for v in values if v != 255]):
        if len(values) > 2 and max(v for v in values if v != 255) < 64:
            # 0, 1, 2, ... and 255: the common mark for "do not count".
            ignored = (*ignored, 255)
            values = [v for v in values if v != 255]
            notes.append("grey value 255 beside class numbers is ignored")
    if len(values) > 2 and {0, 255} & set(values):
        kept, strays = _snap(values, counts, total)
        if strays:
            size = sum(counts[v] for v in strays)
            notes.append(
                f"{len(strays)} stray grey values ({100 * size / total:.2f} % of the pixels) are "
                "taken for the nearest listed one, as JPEG or resampling shifts them"
            )
            for stray in strays:
                counts[min(kept, key=lambda v: abs(v - stray))] += counts[stray]
            values, snap = kept, True
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"the masks hold {len(values)} grey values ({', '.join(map(str, values[:8]))} ...); "
            "these are no class numbers, name the classes in classes.yaml"
        )
    sizes = {v: counts[v] for v in values}
    labelled = max(1, sum(sizes.values()))
    names = {0: "background", 1: "foreground"} if len(values) == 2 else {}
    table = tuple(
        MaskClass(i, names.get(i, f"class {i}"), (v,), sizes[v], sizes[v] / labelled)
        for i, v in enumerate(values)
    )
    return ClassTable("index", table, ignored, snap=snap), tuple(notes)


def _color_table(counts: Counter[int], total: int, gray: int) -> tuple[ClassTable, tuple[str, ...]]:
    saturated = [c for c in counts if _is_pure(c)]
    others = [c for c in counts if c not in saturated]
    grays = [c for c in others if _is_gray(c)]
    notes: list[str] = []
    if saturated and len(grays) > 16 and len(grays) == len(others):
        # Colours drawn over the micrograph: the picture that shows through is a class.
        ordered = sorted(saturated)
        sizes = [sum(counts[c] for c in grays), *(counts[c] for c in ordered)]
        labels: list[tuple[Value, ...]] = [(), *((show(c, "color"),) for c in ordered)]
        names = ["matrix", *(f"class {i}" for i in range(1, len(ordered) + 1))]
        labelled = sum(sizes)
        classes = tuple(
            MaskClass(i, names[i], labels[i], sizes[i], sizes[i] / labelled)
            for i in range(len(sizes))
        )
        note = "the masks are drawn over the micrograph; what shows through is class 0"
        return ClassTable("color", classes, rest_index=0), (note,)
    kept, strays = _snap(sorted(counts), counts, total)
    if len(kept) > MAX_CLASSES:
        raise UserError(
            f"the masks hold {len(kept)} colours; these are no class colours, name the classes in "
            "classes.yaml"
        )
    if strays:
        size = sum(counts[c] for c in strays)
        notes.append(
            f"{len(strays)} stray colours ({100 * size / total:.2f} % of the pixels) are taken for "
            "the nearest listed one, as JPEG or resampling shifts them"
        )
        for stray in strays:
            counts[min(kept, key=lambda c: _distance(c, stray))] += counts[stray]
    labelled = sum(counts[c] for c in kept)
    classes = tuple(
        MaskClass(i, f"class {i}", (show(c, "color"),), counts[c], counts[c] / labelled)
        for i, c in enumerate(kept)
    )
    return ClassTable("color", classes, snap=bool(strays)), tuple(notes)


def _snap(values: list[int], counts: Counter[int], total: int) -> tuple[list[int], list[int]]:
    """Split values into those that stand and those near a standing one and rare."""
    kept: list[int] = []
    strays: list[int] = []
    for value in sorted(values, key=lambda v: -counts[v]):
        near = any(_distance(value, other) <= SNAP_DISTANCE for other in kept)
        rare = counts[value] < SNAP_SHARE * total
        # A count that is a class of its own on a small scale (0, 1, 2) is never a stray.
        if near and rare and len(values) > 8:
            strays.append(value)
        else:
            kept.append(value)
    far = [v for v in kept if counts[v] < SNAP_SHARE * total] if strays else []
    if far:
        listed = ", ".join(show(v, "color") for v in sorted(far)[:8])
        raise UserError(
            f"the masks hold rare values far from every class: {listed}"
            f"{' ...' if len(far) > 8 else ''}; name the classes in classes.yaml"
        )
    return sorted(kept), strays


def _class_file(classes: str | None, folder: Path | None) -> Path | None:
    if classes is not None and classes.lower().endswith((".yaml", ".yml", ".csv")):
        path = Path(classes)
        if not path.is_file():
            raise UserError(f"there is no class file {path}")
        return path
    if classes is None and folder is not None:
        for name in ("classes.yaml", "classes.yml", "classes.csv"):
            if (folder / name).is_file():
                return folder / name
    return None


def _from_file(file: Path, counts: Counter[int], kind: str) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table a class file describes.

    YAML: ``classes: {name: value | [values] | rest}``, ``ignore: [values]``. A value is a grey
    value or a colour ("#rrggbb" or [r, g, b]); several values merge into one class.
    """
    if file.suffix == ".csv":
        entries, ignored, rest = _csv_classes(file, counts)
    else:
        entries, ignored, rest = _yaml_classes(file, kind)
    codes = {value: _code(value) for _, values in entries for value in values}
    if file.suffix == ".csv" and not set(codes.values()) & set(counts):
        raise UserError(f"{file} lists no value that the masks hold")
    listed = [_code(v) for _, values in entries for v in values] + [_code(v) for v in ignored]
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
            if counts[c] >= SNAP_SHARE * total or min(_distance(c, k) for k in listed) > 32
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
            near = min(codes.values(), key=lambda k: _distance(c, k))
            place = next(i for i, (_, vs) in enumerate(entries) if near in map(_code, vs))
            sizes[place] += counts[c]
    labelled = max(1, sum(sizes))
    classes = tuple(
        MaskClass(i, name, values, sizes[i], sizes[i] / labelled)
        for i, (name, values) in enumerate(entries)
    )
    notes.insert(0, f"class names from {file.name}")
    return ClassTable(kind, classes, (*ignored, *negative), rest, snap), tuple(notes)


Entries = list[tuple[str, tuple[Value, ...]]]


def _yaml_classes(file: Path, kind: str) -> tuple[Entries, tuple[Value, ...], int | None]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
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
    import csv

    with open(file, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    starts = ("value", "grey", "gray", "label", "index", "class")
    columns = [c for c in (rows[0] if rows else {}) if c and c.lower().startswith(starts)]
    if not rows or "name" not in rows[0] or not columns:
        raise UserError(f"{file} needs the columns value and name")

    def read(column: str) -> list[tuple[str, tuple[Value, ...]]]:
        cells = [(row["name"], (row[column] or "").replace(";", " ").split()) for row in rows]
        return [(name, tuple(_value(word, file) for word in words)) for name, words in cells]

    def explained(column: str) -> int:
        return sum(counts.get(_code(v), 0) for _, values in read(column) for v in values)

    entries = [(name, values) for name, values in read(max(columns, key=explained)) if values]
    ignored = tuple(v for name, values in entries if "ignore" in name.lower() for v in values)
    return [(n, v) for n, v in entries if "ignore" not in n.lower()], ignored, None


def _values(value: Any, file: Path, kind: str) -> tuple[Value, ...]:
    numbers = isinstance(value, list) and all(isinstance(v, int) for v in value)
    if kind == "color" and numbers and len(value) == 3:
        # Three numbers are a colour where masks are coloured, three class numbers elsewhere.
        return (f"#{value[0]:02x}{value[1]:02x}{value[2]:02x}",)
    if isinstance(value, list):
        return tuple(v for item in value for v in _values(item, file, kind))
    if isinstance(value, str):
        return tuple(_value(word, file) for word in value.replace(",", " ").split())
    return (_value(value, file),)


def _value(value: Any, file: Path) -> Value:
    text = str(value).strip().lower()
    if text.startswith("#") and len(text) == 7:
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(
            f"{file}: {value!r} is neither a grey value nor a colour such as '#ff0000'"
        ) from None


def _renamed(table: ClassTable, names: str) -> ClassTable:
    words = [word.strip() for word in names.split(",") if word.strip()]
    if len(words) != table.num_classes or len(set(words)) != len(words):
        raise UserError(
            f"--classes names {len(words)} classes ({', '.join(words)}), the masks hold "
            f"{table.num_classes} ({', '.join(table.names)}); give one distinct name each"
        )
    classes = tuple(
        MaskClass(c.index, word, c.values, c.pixels, c.share)
        for c, word in zip(table.classes, words, strict=True)
    )
    return ClassTable(table.kind, classes, table.ignore_values, table.rest_index, table.snap)


def _code(value: Value) -> int:
    return (1 << 24) | int(value[1:], 16) if isinstance(value, str) else int(value)


def _is_counting(values: Iterable[int]) -> bool:
    ordered = sorted(values)
    return ordered == list(range(len(ordered))) or ordered == list(range(1, len(ordered) + 1))


def _is_pure(code: int) -> bool:
    """Whether a colour is fully saturated: only 0 and 255, not black or white."""
    channels = [(code >> shift) & 255 for shift in (16, 8, 0)]
    return set(channels) == {0, 255}


def _is_gray(code: int) -> bool:
    return ((code >> 16) & 255) == ((code >> 8) & 255) == (code & 255)


def _distance(a: int, b: int) -> int:
    """Return the largest difference of two grey values, or of two colours in any channel."""
    if a < 1 << 24 or b < 1 << 24:
        return abs(a - b)
    return max(abs(((a >> s) & 255) - ((b >> s) & 255)) for s in (16, 8, 0))


def _nearest(code: int, known: Mapping[int, int]) -> int | None:
    best = min(known, key=lambda k: _distance(code, k))
    return best if _distance(code, best) <= SNAP_DISTANCE else None
