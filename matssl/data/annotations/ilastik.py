"""ilastik and Weka: scribbles as label pictures, ``NAME_Labels.tiff``; each number is a class.

What nobody drew upon (0) is not labelled: it is ignored, never background. A picture of zeros alone
is not labelled at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from matssl.core.labels import IGNORE
from matssl.core.wording import counted
from matssl.data.annotations import named, numbered, sources
from matssl.data.annotations.drawing import Annotations, Choices, Drawing, Marked

ENDINGS = (*numbered.TIFF, ".png")
# What ilastik puts behind the name of a picture.
SUFFIX = "_Labels"


def recognise(path: Path) -> bool:
    """Return whether a file or a folder holds label pictures that are called as ilastik's."""
    return sources.recognised(
        path,
        ENDINGS,
        lambda file: file.stem.lower().endswith(SUFFIX.lower()) and numbered.is_label_picture(file),
    )


def read(path: Path, choices: Choices) -> Annotations:
    """Return what the label pictures of a folder hold, a file a picture.

    Raises:
        UserError: no such file, a damaged one, colours, more numbers than classes.
    """
    found, notes = sources.chosen(path, ENDINGS, numbered.is_label_picture, "ilastik or Weka")
    root = path if path.is_dir() else path.parent
    found = [file for file in found if not numbered.is_written_picture(file, root)]
    names = numbered.read_names(root)
    drawings, empty = [], []
    for file in found:
        values = numbered.values_of(file)
        pictures = named.pictures(file, root)
        size = values.shape[0], values.shape[1]
        shapes = numbered.shapes(values, names, choices, str(file))
        drawings.append(Drawing(pictures[0], size, tuple(shapes), file, also=pictures[1:]))
        if not shapes:
            empty.append(file)
    if empty:
        notes += (f"{counted(len(empty), 'file')} without a scribble (first: {empty[0].name})",)
    labels = numbered.labels_of(drawings, names)
    return Annotations(tuple(drawings), labels, "ignore", notes)


def write(folder: Path, pictures: Iterable[Marked], names: Mapping[int, str]) -> None:
    """Write masks as label pictures of 8 bit, with the names of the numbers in a table.

    Args:
        folder: to write into.
        pictures: the masks.
        names: of the classes to draw; all else, ignored pixels too, is not labelled.
    """
    numbers = numbered.numbering(names)
    del numbers[IGNORE]
    numbered.write(folder, pictures, names, numbers, np.uint8, SUFFIX)
