"""What the masks of a folder mean to a model: its classes with their values, every mask checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.data import masks, readers
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess

# Names that a class table gives to classes nobody has named.
UNNAMED = re.compile(r"class \d+|background|foreground|matrix")


def truth_table(
    dataset: Dataset, table: ClassTable, classes: str | None, raw: bool = False
) -> ClassTable:
    """Return the table that makes the model's class numbers of the folder's masks.

    It is the model's own, unless a class file (``--classes`` or in the folder) says what the
    values mean here: then classes are matched by name, whatever their values.

    Args:
        dataset: the folder.
        table: of the model.
        classes: a class file, "binary", the model's names, or None.
        raw: whether the table of the model is only assumed, so that nothing is held against it.

    Raises:
        UserError: the classes of the folder are not those of the model; both are named.
    """
    paths = mask_paths(dataset.pairs)
    given = classes if classes and is_file_name(classes) else None
    if classes == masks.BINARY or (table.binary and not given):
        return _binary(table)
    if raw and not classes:
        return table
    if not paths:
        return table
    if given or any((dataset.root / name).is_file() for name in masks.CLASS_FILES):
        own, _ = masks.find_table(paths, given, dataset.root)
        present = {c.name for c in own.classes if c.pixels}
        if present <= set(table.names):
            return _matched(own, table)
        values = [c.values for c in own.classes] == [c.values for c in table.classes]
        if not values or not all(UNNAMED.fullmatch(name) for name in table.names):
            raise _other_classes(dataset.root, own, table)
    elif table.rest_index is not None:
        # Every value decodes where the rest is a class; a colour of its own must not vanish there.
        try:
            own, _ = masks.find_table(paths)
        except UserError:
            return table
        if not {v for c in own.classes for v in c.values} <= {
            v for c in table.classes for v in c.values
        }:
            raise _other_classes(dataset.root, own, table)
    return table


def mask_paths(pairs: Sequence[Pair]) -> list[Path]:
    """Return the mask files there are."""
    return [pair.mask for pair in pairs if pair.mask is not None]


def is_file_name(classes: str) -> bool:
    """Return whether ``--classes`` names a file and not the classes themselves."""
    return classes.lower().endswith((".yaml", ".yml", ".csv"))


def _binary(table: ClassTable) -> ClassTable:
    """Return the table of a model of two classes for masks with any number of values above 0."""
    if table.num_classes != 2:
        raise UserError(
            f"--classes binary is for a model of two classes; it knows {', '.join(table.names)}"
        )
    own = masks.binary_table()
    return replace(
        own,
        classes=tuple(replace(c, name=n) for c, n in zip(own.classes, table.names, strict=True)),
    )


def _matched(own: ClassTable, table: ClassTable) -> ClassTable:
    """Return the model's classes with the values that mean them in the masks of ``own``."""
    by_name = {c.name: c for c in own.classes}
    classes = tuple(
        replace(c, values=by_name[c.name].values if c.name in by_name else ())
        for c in table.classes
    )
    rest = None if own.rest_index is None else table.names.index(own.names[own.rest_index])
    return replace(own, classes=classes, rest_index=rest)


def _other_classes(root: Path, own: ClassTable, table: ClassTable) -> UserError:
    return UserError(
        f"the classes of {root} ({_listed(own)}) and of the model ({_listed(table)}) differ; "
        "a file with the model's names for these values (--classes FILE.yaml) would match them"
    )


def _listed(table: ClassTable) -> str:
    return "; ".join(f"{c.name} = {', '.join(map(str, c.values)) or 'rest'}" for c in table.classes)


def check_masks(
    pairs: Sequence[Pair], truth: ClassTable, table: ClassTable, record: Preprocess
) -> ClassTable:
    """Read every mask once before anything is written; return the table with its pixels counted.

    Raises:
        UserError: another kind of mask or values that the model does not know; both are named.
    """
    pixels = np.zeros(truth.num_classes, np.int64)
    explained = 0
    rest = IGNORE if truth.rest_index is None else truth.rest_index
    for pair in pairs:
        if pair.mask is None:
            continue
        raw = readers.read_mask(pair.mask)
        try:
            decoded = truth.decode(raw, str(pair.mask))
        except UserError as error:
            raise UserError(
                f"the masks and the model differ: {error}. The model has "
                f"{table.num_classes} classes ({_listed(table)})"
            ) from error
        record.mask(decoded, record.read(pair.image))
        sizes = np.bincount(decoded.ravel(), minlength=256)
        pixels += sizes[: truth.num_classes]
        explained += int(sizes[:IGNORE].sum() - (sizes[rest] if rest != IGNORE else 0))
    paths = mask_paths(pairs)
    if paths and pixels.sum() == 0:
        raise UserError(f"every pixel of every mask in {paths[0].parent} is to be ignored")
    if paths and explained == 0:
        raise UserError(
            f"no mask of {paths[0].parent} holds a colour of the model's classes "
            f"({', '.join(table.names)}); the data set has other classes"
        )
    share = pixels / max(1, pixels.sum())
    counted = zip(truth.classes, pixels.tolist(), share.tolist(), strict=True)
    return replace(truth, classes=tuple(replace(c, pixels=n, share=f) for c, n, f in counted))
