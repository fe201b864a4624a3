"""What the masks of a folder mean to a model: its classes with their values, every mask checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.paths import CLASS_ENDINGS
from matssl.data import masks, readers
from matssl.data.layouts import Dataset, Pair
from matssl.data.masks import ClassTable
from matssl.data.preprocess import Preprocess

# Names that a class table gives to classes nobody has named.
UNNAMED = re.compile(r"class \d+|background|foreground|matrix")


def truth_table(
    dataset: Dataset, table: ClassTable, classes: str | None, raw: bool = False
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table that makes the model's class numbers of the folder's masks, and notes.

    It is the model's own, unless a class file (``--classes`` or in the folder) says what the
    values mean here: then classes are matched by name, whatever their values.

    Args:
        dataset: the folder.
        table: of the model.
        classes: a class file, "binary", "binary:THRESHOLD", the model's names, or None.
        raw: whether the table of the model is only assumed, so that nothing is held against it.

    Raises:
        UserError: the classes of the folder are not those of the model; both are named.
    """
    paths = mask_paths(dataset.pairs)
    given = classes if classes and is_file_name(classes) else None
    if classes is not None and masks.is_binary(classes):
        return _binary(table, paths, classes)
    if table.threshold is not None and not given:
        own_cut = "" if table.threshold == 1 else f":{table.threshold}"
        return _binary(table, paths, masks.BINARY + own_cut)
    if not paths or (raw and not classes):
        return table, ()
    if given or masks.class_file(None, dataset.class_folder) is not None:
        own, notes = masks.find_table(paths, given, dataset.class_folder)
        present = {c.name for c in own.classes if c.pixels}
        if present <= set(table.names):
            # What was made of annotation files has told of itself, and its class file is ours.
            return _matched(own, table), () if dataset.made is not None else notes
        values = [c.values for c in own.classes] == [c.values for c in table.classes]
        if not values or not all(UNNAMED.fullmatch(name) for name in table.names):
            raise _other_classes(dataset.root, own, table)
    elif table.rest_index not in (None, IGNORE):
        # Every value decodes where the rest is a class; a colour of its own must not vanish there.
        try:
            own, _ = masks.find_table(paths)
        except UserError:
            return table, ()
        if not {v for c in own.classes for v in c.values} <= {
            v for c in table.classes for v in c.values
        }:
            raise _other_classes(dataset.root, own, table)
    return _as_saved_here(table, paths)


def _as_saved_here(table: ClassTable, paths: Sequence[Path]) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the model's table for masks that mean its values and are saved in another way.

    Training may have opened clean masks alone, and the others of the set went through JPEG or
    are white at 1 instead of 255.
    """
    if all(_decodes(table, path) for path in paths):
        return table, ()
    try:
        own, notes = masks.find_table(paths)
    except UserError:
        # That they differ from the model's is said when they are read.
        return table, ()
    same = [c.values for c in own.classes] == [c.values for c in table.classes]
    if own.kind != table.kind or own.num_classes != table.num_classes:
        return table, ()
    if not same and not (own.any_white and table.is_black_and_white):
        return table, ()
    return _matched(_renamed(own, table.names), table), notes


def _decodes(table: ClassTable, path: Path) -> bool:
    try:
        table.decode(readers.read_mask(path), str(path))
    except UserError:
        return False
    return True


def _renamed(own: ClassTable, names: Sequence[str]) -> ClassTable:
    classes = tuple(replace(c, name=n) for c, n in zip(own.classes, names, strict=True))
    return replace(own, classes=classes)


def mask_paths(pairs: Sequence[Pair]) -> list[Path]:
    """Return the mask files there are."""
    return [pair.mask for pair in pairs if pair.mask is not None]


def is_file_name(classes: str) -> bool:
    """Return whether ``--classes`` names a file and not the classes themselves."""
    return classes.lower().endswith(CLASS_ENDINGS)


def _binary(
    table: ClassTable, paths: Sequence[Path], classes: str
) -> tuple[ClassTable, tuple[str, ...]]:
    """Return the table of a model of two classes for masks with any values, and notes."""
    if table.num_classes != 2:
        raise UserError(
            f"--classes binary is for a model of two classes; it knows {', '.join(table.names)}"
        )
    own, notes = masks.find_binary(paths, classes)
    return _renamed(own, table.names), notes


def _matched(own: ClassTable, table: ClassTable) -> ClassTable:
    """Return the model's classes with the values that mean them in the masks of ``own``."""
    by_name = {c.name: c for c in own.classes}
    classes = tuple(
        replace(c, values=by_name[c.name].values if c.name in by_name else ())
        for c in table.classes
    )
    rest = own.rest_index
    if rest is not None and rest != IGNORE:
        rest = table.names.index(own.names[rest])
    return replace(own, classes=classes, rest_index=rest)


def _other_classes(root: Path, own: ClassTable, table: ClassTable) -> UserError:
    return UserError(
        f"the classes of {root} ({_listed(own)}) and of the model ({_listed(table)}) differ; "
        "a file with the model's names for these values (--classes FILE.yaml) would match them"
    )


def _listed(table: ClassTable) -> str:
    return "; ".join(f"{c.name} = {', '.join(map(str, c.values)) or 'rest'}" for c in table.classes)


def check_masks(
    pairs: Sequence[Pair],
    truth: ClassTable,
    table: ClassTable,
    record: Preprocess,
    look: Callable[[NDArray[np.uint8]], None] | None = None,
) -> tuple[ClassTable, tuple[str, ...]]:
    """Read every mask once before anything is written; return the table with its pixels counted.

    What the reader said of the masks comes with it, in words. Files that cannot be read are left
    to those who work on them one by one.

    Args:
        pairs: images with their masks.
        truth: the model's classes with the values that mean them here.
        table: of the model.
        record: how images are cut.
        look: is shown each mask, class indices (H, W).

    Raises:
        UserError: no file can be read, another kind of mask, or values that the model does not
            know; both are named.
    """
    pixels = np.zeros(truth.num_classes, np.int64)
    explained = 0
    unread: list[UserError] = []
    said: dict[str, list[Path]] = {}
    rest = IGNORE if truth.rest_index is None else truth.rest_index
    left: list[tuple[Path, int]] = []
    for pair in pairs:
        if pair.mask is None:
            continue
        try:
            raw, micrograph = readers.read_mask(pair.mask), record.frame(pair.image)
        except UserError as error:
            # It is listed when its turn comes, and costs no other.
            unread.append(error)
            continue
        if isinstance(raw, readers.RawMask) and raw.remark:
            said.setdefault(raw.remark, []).append(pair.mask)
        try:
            decoded = truth.decode(raw, str(pair.mask))
        except UserError as error:
            raise UserError(
                f"the masks and the model differ: {error}. The model has "
                f"{table.num_classes} classes ({_listed(table)})"
            ) from error
        record.mask(decoded, micrograph)
        if look is not None:
            look(decoded)
        sizes = np.bincount(decoded.ravel(), minlength=256)
        pixels += sizes[: truth.num_classes]
        explained += int(sizes[:IGNORE].sum() - (sizes[rest] if rest != IGNORE else 0))
        left += [(pair.mask, int(sizes[IGNORE]))] if sizes[IGNORE] else []
    paths = mask_paths(pairs)
    if paths and len(unread) == len(paths):
        raise unread[0]
    if paths and pixels.sum() == 0:
        raise UserError(f"every pixel of every mask in {paths[0].parent} is to be ignored")
    if paths and explained == 0:
        raise UserError(
            f"no mask of {paths[0].parent} holds a colour of the model's classes "
            f"({', '.join(table.names)}); the data set has other classes"
        )
    share = pixels / max(1, pixels.sum())
    counted = zip(truth.classes, pixels.tolist(), share.tolist(), strict=True)
    table = replace(truth, classes=tuple(replace(c, pixels=n, share=f) for c, n, f in counted))
    told = [f"{masks.files(found)}: {remark}" for remark, found in said.items()]
    if left and truth.rest_index == IGNORE:
        # Of a table that ignores what it does not list, no value is refused: it is counted.
        many = sum(n for _, n in left)
        told.append(
            f"{masks.files([path for path, _ in left])}: {many:,} px "
            f"({100 * many / (many + int(pixels.sum())):.2f} %) are of no class of the model and "
            "are not scored"
        )
    return table, tuple(told)
