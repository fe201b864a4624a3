"""Files in which labelling programs keep what people drew: read, and written.

``drawing`` is what every format is read into and ``raster`` makes masks of it; ``outlines`` makes
polygons of masks. A format is a file of this folder and its line in ``FORMATS``. It has

* ``recognise(path) -> bool``: whether a file or a folder is of this format. Reads little, raises
  nothing.
* ``read(path, choices) -> Annotations``: what a file or a folder holds. Raises UserError, in one
  line, for what is damaged or left open.
* ``write(folder, pictures, names) -> None``, where it can be written: masks as files of the
  program, in an empty folder; ``read`` of that folder gives the same masks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, cast

from matssl.data.annotations.drawing import Annotations, Choices, Drawing, Marked, Shape

__all__ = [
    "FORMATS",
    "Annotations",
    "Choices",
    "Drawing",
    "Marked",
    "Shape",
    "format_name",
    "module_of",
    "recognised",
]

# Paths of modules as words: a command's --help loads none of them.
FORMATS: dict[str, str] = {
    "labelme": "matssl.data.annotations.labelme",
    "coco": "matssl.data.annotations.coco",
    "cvat": "matssl.data.annotations.cvat",
    "labelstudio": "matssl.data.annotations.label_studio",
    "via": "matssl.data.annotations.via",
    "yolo": "matssl.data.annotations.yolo",
    "imagej": "matssl.data.annotations.imagej",
    "qupath": "matssl.data.annotations.qupath",
    "napari_labels": "matssl.data.annotations.napari_labels",
    "napari_shapes": "matssl.data.annotations.napari_shapes",
    "ilastik": "matssl.data.annotations.ilastik",
    "ome_zarr": "matssl.data.annotations.ome_zarr",
    "ome_zarr_05": "matssl.data.annotations.ome_zarr_05",
}


class Format(Protocol):
    """What the module of a format has."""

    recognise: Callable[[Path], bool]
    read: Callable[[Path, Choices], Annotations]


class Written(Format, Protocol):
    """What the module of a format has that is written, too."""

    write: Callable[[Path, Iterable[Marked], Mapping[int, str]], None]


def module_of(name: str) -> Format:
    """Return the module of a format of ``FORMATS``."""
    return cast(Format, importlib.import_module(FORMATS[name]))


def format_name(said: str) -> str:
    """Return a format's name as ``FORMATS`` spells it: Label-Studio is labelstudio."""
    plain = said.strip().lower().replace("-", "_").replace(" ", "_")
    return next((n for n in FORMATS if n.replace("_", "") == plain.replace("_", "")), plain)


def recognised(path: Path) -> list[str]:
    """Return the formats that a file or a folder may be of."""
    return [name for name in FORMATS if module_of(name).recognise(path)]
