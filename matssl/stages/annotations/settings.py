"""Flags of ``python -m matssl.tools.annotations``."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.stages.settings import ToolSettings

IMPORT = """Make masks of annotations: ``annotations import FILES --images A --output_dir OUT``.

A pixel gets a class where its centre lies in a shape of that class. OUT gets a mask of class
numbers for every annotated picture (its name, its sub-folders), classes.yaml as training reads it,
and import.csv (what each mask was made of). What files leave open is asked, not guessed: which
class a pixel has that two claim, whose annotation counts, what a label means that --classes does
not list.
"""


def format_problem(name: str) -> str:
    """Return what is wrong with ``--format``."""
    from matssl.data.annotations import FORMATS, format_name

    if format_name(name) in FORMATS:
        return ""
    return f"unknown format {name!r}; known are {', '.join(FORMATS)}"


@dataclass(frozen=True, repr=False, eq=False)
class ImportSettings(ToolSettings):
    """Flags of ``annotations import``."""

    annotations: str = flag(
        "",
        "data",
        "folder of the annotation files, or one of them",
        required=True,
        positional=True,
        leads=paths.images,
    )
    format: str | None = flag(
        None,
        "data",
        "labelme, coco, cvat, labelstudio, imagej, qupath, napari_labels, napari_shapes, ilastik, "
        "ome_zarr, ome_zarr_05, via or yolo",
        auto="told from the files",
        check=format_problem,
        first=True,
    )
    images: str = flag(
        "", "data", "folder of the annotated pictures", required=True, leads=paths.images
    )
    output_dir: str = flag("", "run", "folder to be made for the masks", required=True)
    classes: str | None = flag(
        None,
        "classes",
        "class file (name: value), or names in order: a,b,c",
        auto="all that were drawn",
        first=True,
        leads=paths.class_file,
        commas=True,
    )
    rename: tuple[str, ...] = flag(
        (), "classes", "OLD=NEW: labels that mean another class, or background, or ignore"
    )
    overlap: str | None = flag(
        None,
        "classes",
        "which of two classes gets a pixel: of the last or first drawn shape, of the smallest or "
        "largest one, or none (ignore)",
        auto="the format's order; a question where it has none",
        choices=("last", "first", "smallest", "largest", "ignore"),
        first=True,
    )
    uncovered: str | None = flag(
        None,
        "classes",
        "what a pixel is that nothing covers",
        auto="background; ignore in scribbles",
        choices=("background", "ignore"),
        first=True,
    )
    unannotated: str = flag(
        "skip",
        "classes",
        "mask of a picture without annotation: none (skip), all background, or all ignored",
        choices=("skip", "background", "ignore"),
        first=True,
    )
    annotator: str = flag(
        "",
        "files",
        "whose annotation counts where a picture has several: id or e-mail, newest or oldest; "
        "OME-Zarr: name of the labels",
    )
    attribute: str = flag(
        "",
        "files",
        "VIA: which attribute of a region is its class; Label Studio: which field is the picture",
    )
    boxes: str | None = flag(
        None,
        "files",
        "boxes without an outline: the whole box is the class (fill), or nothing (skip)",
        auto="a question",
        choices=("fill", "skip"),
    )
    label: str = flag("", "files", "class of shapes to which the files give none")


def import_problems(args: ImportSettings) -> list[Problem]:
    """Return what is wrong with the renamed labels."""
    from matssl.core.errors import UserError
    from matssl.data.annotations.classes import renamed

    try:
        renamed(args.rename)
    except UserError as error:
        return [Problem(str(error), ("rename",))]
    return []
