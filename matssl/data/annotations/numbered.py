"""Label pictures: a number a class in every pixel, with their names in a table beside them.

Programs that draw in numbers keep no names with them. ``label_names.csv``, which we write beside
such files, says them; without it a class is called as its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from matssl.core import tables, textfiles
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_path, atomic_write_text
from matssl.core.wording import cut
from matssl.data import readers
from matssl.data.annotations import sources
from matssl.data.annotations.drawing import (
    Choices,
    Drawing,
    Marked,
    Patch,
    Shape,
    label_of,
    stem_of,
)
from matssl.data.readers.headers import header

TIFF = (".tif", ".tiff")
NAMES = "label_names.csv"
# Folder of the pictures that labels were written with, where these are none of the user's files.
PICTURES = "pictures"
IGNORED = "__ignore__"
# More numbers than masks have values are those of objects.
MOST = 255
# Pixels of all boxes about the parts of one class, together: what they may take in memory.
MOST_PIXELS = 1 << 31


def is_label_picture(path: Path) -> bool:
    """Return whether a file is a picture of one channel of whole numbers, of any depth."""
    try:
        head = header(path)
    except UserError:
        return False
    return head.channels == 1


def is_written_picture(path: Path, root: Path) -> bool:
    """Return whether a file is a picture that was written beside our own label pictures."""
    return root / PICTURES in path.parents and (root / NAMES).is_file()


def values_of(path: Path) -> Array:
    """Return the numbers of a label picture, (rows, columns).

    Raises:
        UserError: it cannot be read, holds colours, or several pages.
    """
    if pages := readers.frames(path):
        raise UserError(
            f"{path} holds {len(pages)} label pictures, a page each; save those of each page as a "
            "file of its own, named as the picture of that page"
        )
    raw = np.asarray(readers.read_mask(path))
    if raw.ndim != 2:
        raise UserError(f"{path} holds colours; a label picture holds one number a pixel")
    return raw


def shapes(values: Array, names: Mapping[int, str], choices: Choices, where: str) -> list[Shape]:
    """Return the classes of a label picture as patches; 0 is none.

    Args:
        values: whole numbers (rows, columns).
        names: of the numbers, where a file says them; others are called as their number.
        choices: ``label`` makes one class of all numbers.
        where: for messages.

    Raises:
        UserError: more numbers than classes.
    """
    if choices.label:
        return _patches([(label_of(choices.label), values != 0)], where)
    numbers = [int(v) for v in np.unique(values) if v]
    if len(numbers) > MOST:
        raise UserError(
            f"{where} holds {len(numbers):,} numbers, more than there are classes; where they "
            "number objects, --label NAME makes one class of all"
        )
    parts = ((names.get(number, str(number)), values == number) for number in numbers)
    return _patches(parts, where)


def _patches(parts: Iterable[tuple[str, NDArray[np.bool_]]], where: str) -> list[Shape]:
    found, pixels = [], 0
    for label, inside in parts:
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not len(rows):
            continue
        top, left = int(rows[0]), int(columns[0])
        own = inside[top : rows[-1] + 1, left : columns[-1] + 1].copy()
        pixels += own.size
        if pixels > MOST_PIXELS:
            raise UserError(f"{where} is too large for so many classes; cut it into pictures")
        found.append(Shape(label, "label", patch=Patch(top, left, own)))
    return found


def labels_of(drawings: Iterable[Drawing], names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the names of classes as the table lists them, else as their numbers rise."""
    listed = [name for name in names.values() if name != IGNORED]
    drawn = {shape.label for drawing in drawings for shape in drawing.shapes}
    numbers = sorted((n for n in drawn - set(listed) if n.isdecimal()), key=int)
    return (*listed, *numbers)


def read_names(root: Path) -> dict[int, str]:
    """Return the names of the numbers that the table in a folder says; none where there is none.

    Raises:
        UserError: it is no such table.
    """
    file = root / NAMES
    if not file.is_file():
        return {}
    found: dict[int, str] = {}
    for at, row in enumerate(textfiles.read_rows(file), 2):
        if {"number", "name"} - set(row):
            raise UserError(f"{file} needs the columns number and name")
        said = row["number"]
        if not said.isdecimal() or len(said) > 10 or int(said) in found:
            raise UserError(f"{file}, line {at}: {cut(said, 40)!r} is no number, or there twice")
        found[int(said)] = sources.label(row["name"], f"{file}, line {at}")
    return found


def write(
    folder: Path,
    pictures: Iterable[Marked],
    names: Mapping[int, str],
    numbers: Mapping[int, int],
    dtype: type[np.unsignedinteger],
    suffix: str = "",
) -> None:
    """Write masks as label pictures (TIFF) with the table of their names.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw.
        numbers: that each of them gets, of :func:`numbering`; all others become 0.
        dtype: of the numbers.
        suffix: behind the names of the pictures.
    """
    for picture in pictures:
        file = folder / f"{stem_of(picture.picture)}{suffix}.tif"
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn = drawn_as(picture.mask, numbers).astype(dtype)
        with atomic_path(file) as temporary:
            tifffile.imwrite(temporary, drawn, compression="zlib", photometric="minisblack")
    atomic_write_text(folder / NAMES, table_of(names, numbers))


def numbering(names: Mapping[int, str]) -> dict[int, int]:
    """Return the number of each class to draw, and of ignored pixels; from 1 on, 0 is none."""
    drawn = [number for number in names if number != IGNORE]
    # Numbers stay what they are where that leaves 0 free.
    found = {number: number for number in drawn}
    if 0 in found:
        found = {number: number + 1 for number in drawn}
    found[IGNORE] = IGNORE if IGNORE not in found.values() else IGNORE + 1
    return found


def drawn_as(mask: NDArray[np.uint8], numbers: Mapping[int, int]) -> NDArray[np.uint32]:
    """Return a mask with the numbers of :func:`numbering`, 0 where nothing is drawn."""
    places = np.zeros(256, np.uint32)
    for number, written in numbers.items():
        places[number] = written
    return places[mask]


def table_of(names: Mapping[int, str], numbers: Mapping[int, int]) -> str:
    """Return the table of names of label pictures."""
    rows = [
        {"number": written, "name": IGNORED if number == IGNORE else names[number]}
        for number, written in numbers.items()
    ]
    return tables.csv_text(rows)
