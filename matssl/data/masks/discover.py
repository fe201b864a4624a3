"""Finds the class table of a data set from all of its masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.masks.class_file import class_file, from_file
from matssl.data.masks.table import (
    SNAP_DISTANCE,
    SNAP_SHARE,
    ClassTable,
    MaskClass,
    Value,
    binary_table,
    code_of,
    distance,
    flatten,
    pack,
    show,
)

MAX_CLASSES = 64
# --classes binary: every value but 0 is one class.
BINARY = "binary"


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
    file = class_file(classes, folder)
    if file is not None:
        table, notes = from_file(file, counts, kind)
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


def _binary_table(counts: Counter[int]) -> ClassTable:
    table = binary_table()
    dark = counts[0] + counts[code_of("#000000")]
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
            counts[min(kept, key=lambda c: distance(c, stray))] += counts[stray]
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
        near = any(distance(value, other) <= SNAP_DISTANCE for other in kept)
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


def _is_counting(values: Iterable[int]) -> bool:
    ordered = sorted(values)
    return ordered == list(range(len(ordered))) or ordered == list(range(1, len(ordered) + 1))


def _is_pure(code: int) -> bool:
    """Whether a colour is fully saturated: only 0 and 255, not black or white."""
    channels = [(code >> shift) & 255 for shift in (16, 8, 0)]
    return set(channels) == {0, 255}


def _is_gray(code: int) -> bool:
    return ((code >> 16) & 255) == ((code >> 8) & 255) == (code & 255)
