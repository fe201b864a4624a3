"""napari: label layers saved as TIFF, named as their picture; each number is a class.

napari writes whole numbers of 32 bit or more. 0 is not drawn. Where numbers count objects,
``--label NAME`` makes one class of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from matssl.core.errors import UserError
from matssl.data.annotations import named, numbered, sources
from matssl.data.annotations.drawing import Annotations, Choices, Drawing, Marked
from matssl.data.readers.headers import header

# Bits of napari's numbers; pictures and masks of others have fewer.
BITS = 32


def _is_one(path: Path) -> bool:
    return numbered.is_label_picture(path) and header(path).bits >= BITS


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds labels of napari: TIFF of at least 32 bit."""
    return sources.recognised(path, numbered.TIFF, _is_one)


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the label pictures of a folder hold, of any depth, a file a picture.

    Raises:
        UserError: no such file, a damaged one, colours, more numbers than classes.
    """
    found, notes = sources.chosen(path, numbered.TIFF, numbered.is_label_picture, "napari labels")
    root = path if path.is_dir() else path.parent
    names = numbered.read_names(root)
    drawings = tuple(_drawing(file, root, names, choices) for file in found)
    return Annotations(drawings, numbered.labels_of(drawings, names), notes=notes)


def _drawing(file: Path, root: Path, names: Mapping[int, str], choices: Choices) -> Drawing:
    values = numbered.values_of(file)
    if values.dtype.kind == "i" and values.min(initial=0) < 0:
        raise UserError(f"{file} holds negative numbers; a label is a number from 1 on")
    shapes = numbered.shapes(values, names, choices, str(file))
    pictures = named.pictures(file, root)
    size = values.shape[0], values.shape[1]
    return Drawing(pictures[0], size, tuple(shapes), file, also=pictures[1:], ordered=True)


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as label pictures of 32 bit, with the names of the numbers in a table.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; ignored pixels get a number of their own.
    """
    numbered.write(folder, pictures, names, numbered.numbering(names), np.uint32)
