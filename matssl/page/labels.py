"""Labels that are drawn in the page: masks of the size of their pictures, saved whole or never.

``labels/FOLDER`` mirrors the pictures: S1/a.tif is labelled in S1/a.png, a PNG with a palette whose
values are those of classes.yaml beside them; 255 is not labelled. Every command takes them with
``--mask_folder labels/FOLDER --classes labels/FOLDER/classes.yaml``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.palette import distinct
from matssl.core.run_folder import atomic_write_bytes, atomic_write_text
from matssl.data.masks import CLASS_FILES, ClassTable, MaskClass
from matssl.data.masks.class_file import values_by_name
from matssl.page.workspace import Refused

CLASSES, COLOURS = CLASS_FILES[0], "colours.json"
# A class more would need a value that means "not labelled".
MOST_CLASSES, LONGEST_NAME = 32, 60
FIRST = ("matrix", "second phase")
UNLABELLED = (235, 235, 235)
# Two saves of one mask come one after the other.
_saving = threading.Lock()


@dataclass(frozen=True)
class Class:
    """A class: its value in masks, its name, its colour as #rrggbb."""

    value: int
    name: str
    colour: str


@dataclass(frozen=True)
class Classes:
    """The classes of the labels of a folder, in their order."""

    listed: tuple[Class, ...]

    @staticmethod
    def named(names: Sequence[str]) -> Classes:
        """Return classes of these names with values from 0 and the colours of reports."""
        colours = [_hex(c) for c in distinct(len(names)).tolist()]
        return Classes(
            tuple(Class(i, n, c) for i, (n, c) in enumerate(zip(names, colours, strict=True)))
        )

    @staticmethod
    def of(entries: Sequence[Mapping[str, Any]]) -> Classes:
        """Return the classes that a browser sends.

        Raises:
            Refused: names, values or colours that cannot be, or are there twice.
        """
        if not 1 <= len(entries) <= MOST_CLASSES:
            raise Refused(400, f"there are 1 to {MOST_CLASSES} classes")
        found = []
        for entry in entries:
            value, name = entry.get("value"), str(entry.get("name", "")).strip()
            colour = str(entry.get("colour", "")).lower()
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < IGNORE:
                raise Refused(400, "the value of a class is 0 to 254")
            if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or "," in name:
                raise Refused(
                    400, f"a class needs a name of at most {LONGEST_NAME} letters, without commas"
                )
            if not re.fullmatch("#[0-9a-f]{6}", colour):
                raise Refused(400, f"{name} needs a colour")
            found.append(Class(value, name, colour))
        if len({c.name.lower() for c in found}) < len(found):
            raise Refused(400, "two classes have one name")
        if len({c.value for c in found}) < len(found):
            raise Refused(400, "two classes have one value")
        return Classes(tuple(found))

    def stored(self) -> list[dict[str, object]]:
        """Return the classes as plain values."""
        return [{"value": c.value, "name": c.name, "colour": c.colour} for c in self.listed]

    @property
    def values(self) -> frozenset[int]:
        """Values that may stand in masks."""
        return frozenset(c.value for c in self.listed) | {IGNORE}


def name_of(image: str) -> str:
    """Return the path of a picture's mask from the folder of the labels."""
    return str(PurePosixPath(image).with_suffix(".png"))


def read_classes(home: Path) -> Classes:
    """Return the classes of a folder of labels; two to begin with where there are none."""
    file = home / CLASSES
    if not file.is_file():
        return Classes.named(FIRST)
    named = values_by_name(file)
    try:
        colours = json.loads((home / COLOURS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        colours = {}
    usual = [_hex(c) for c in distinct(len(named)).tolist()]
    found = []
    for (name, values), colour in zip(named.items(), usual, strict=True):
        if len(values) != 1 or not isinstance(values[0], int) or not 0 <= values[0] < IGNORE:
            raise UserError(f"{file} gives {name} other than one value; the page cannot draw it")
        own = colours.get(name) if isinstance(colours, dict) else None
        found.append(Class(values[0], name, own if isinstance(own, str) else colour))
    return Classes.of([vars(c) for c in found])


def write_classes(home: Path, classes: Classes) -> None:
    """Write classes.yaml, and the colours beside it."""
    from matssl.data.layouts.written import class_text

    listed = tuple(MaskClass(i, c.name, (c.value,)) for i, c in enumerate(classes.listed))
    home.mkdir(parents=True, exist_ok=True)
    colours = {c.name: c.colour for c in classes.listed}
    atomic_write_text(home / COLOURS, json.dumps(colours, ensure_ascii=False))
    atomic_write_text(home / CLASSES, class_text(ClassTable("index", listed, (IGNORE,))))


def read(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask of a picture, uint8 of its shape; 255 all over where nothing is labelled.

    Raises:
        UserError: the file is none of ours, or of another size.
    """
    if not path.is_file():
        return np.full(shape, IGNORE, np.uint8)
    try:
        with Image.open(path) as file:
            if file.mode not in ("P", "L") or (file.height, file.width) != shape:
                told = f"{file.width} x {file.height}, {file.mode}"
                raise UserError(
                    f"the labels {path.name} ({told}) do not fit the picture "
                    f"({shape[1]} x {shape[0]}); take the file away to draw anew"
                )
            return np.array(file, np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the labels {path.name} cannot be read: {error}") from error


def revision(path: Path) -> str:
    """Return what changes whenever a mask is saved; "new" where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "new"
    return f"{status.st_mtime_ns:x}-{status.st_ino:x}"


def write(path: Path, mask: NDArray[np.uint8], classes: Classes) -> None:
    """Write a mask; a kill at any moment leaves the old one or the new one."""
    from matssl.stages.drawing import palette_png

    colours = np.full((256, 3), UNLABELLED, np.uint8)
    for one in classes.listed:
        colours[one.value] = [int(one.colour[i : i + 2], 16) for i in (1, 3, 5)]
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, palette_png(np.ascontiguousarray(mask), colours))


def paste(
    path: Path,
    shape: tuple[int, int],
    window: tuple[int, int, int, int],
    pixels: NDArray[np.uint8],
    classes: Classes,
    known: str,
) -> tuple[str, int]:
    """Put a window into a mask and return its new revision and how many pixels are labelled.

    Args:
        path: of the mask.
        shape: of the picture.
        window: left, top, width, height.
        pixels: values of the window, (height, width).
        classes: values that may stand there.
        known: revision that the drawer has seen.

    Raises:
        Refused: another page has saved it since, or values that mean no class.
    """
    odd = set(np.unique(pixels).tolist()) - classes.values
    if odd:
        raise Refused(400, f"the values {sorted(odd)[:5]} mean no class")
    left, top, width, height = window
    with _saving:
        if revision(path) != known:
            raise Refused(409, "these labels were changed elsewhere meanwhile; load them again")
        mask = read(path, shape)
        mask[top : top + height, left : left + width] = pixels
        write(path, mask, classes)
        return revision(path), int((mask != IGNORE).sum())


def values(path: Path) -> NDArray[np.uint8]:
    """Return the values of a mask of ours, whatever its size."""
    with Image.open(path) as file:
        return np.array(file, np.uint8)


def counts(path: Path) -> dict[int, int]:
    """Return how many pixels each value has in a mask."""
    sizes = np.bincount(values(path).ravel(), minlength=256)
    return {value: int(n) for value, n in enumerate(sizes.tolist()) if n and value != IGNORE}


def is_complete(path: Path, bar: int) -> bool:
    """Return whether every pixel of a mask is labelled, but for so many rows at the bottom."""
    mask = values(path)
    return bool((mask[: len(mask) - bar] != IGNORE).all())


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(channel):02x}" for channel in colour)
