"""Predicted masks of chosen pictures as files of a labelling program, to be corrected there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.data.annotations import FORMATS, Marked, Written, format_name, module_of
from matssl.data.annotations.drawing import stem_of
from matssl.data.layouts.written import class_text
from matssl.data.masks import ClassTable, MaskClass

# Folder of the files, and of those that say what the classes are.
PLACE, CLASSES = "annotations", "classes.yaml"
# Formats in which a pixel that nothing covers is not labelled, so that every class is drawn.
SCRIBBLES = frozenset(("ilastik",))


def check(said: str) -> str:
    """Return the name of a format that can be written; "" of "".

    Raises:
        UserError: there is no such format, or it is read only.
    """
    if not said:
        return ""
    name = format_name(said)
    able = [known for known in FORMATS if hasattr(module_of(known), "write")]
    if name not in able:
        raise UserError(f"--export {said}: no format that is written; there are: {', '.join(able)}")
    return name


def write(folder: RunFolder, name: str, marked: Sequence[Marked], names: Sequence[str]) -> None:
    """Write masks in a format, with the class file that reads them back.

    The first class is what nothing covers, but in formats in which that is not labelled.

    Args:
        folder: of the results.
        name: of the format, see :func:`check`.
        marked: the masks.
        names: of the classes.

    Raises:
        UserError: two pictures would have one file.
    """
    stems: dict[str, str] = {}
    for one in marked:
        other = stems.setdefault(stem_of(one.picture).casefold(), one.picture)
        if other != one.picture:
            raise UserError(
                f"--export {name}: {other} and {one.picture} would have one file; choose them in "
                "two rounds"
            )
    place = folder.path(f"{PLACE}/{CLASSES}").parent
    drawn = {i: own for i, own in enumerate(names) if i or name in SCRIBBLES}
    cast(Written, module_of(name)).write(place, iter(marked), drawn)
    classes = tuple(MaskClass(i, own, (i,)) for i, own in enumerate(names))
    text = class_text(ClassTable("index", classes, (IGNORE,)))
    folder.write_text(f"{PLACE}/{CLASSES}", text)
