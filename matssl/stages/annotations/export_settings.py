"""Flags of ``annotations export`` and ``annotations compare``."""

from __future__ import annotations

from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import flag
from matssl.stages.annotations.settings import format_problem
from matssl.stages.settings import ToolSettings, classes_problem

EXPORT = """Write masks as files of a labelling program: ``annotations export RUN --format F``.

RUN is a run of eval_model.py or of phase_map, a labelled folder, or a folder of masks. OUT gets
what the program opens, with holes and touching classes, and classes.yaml, with which import makes
masks of what was corrected. Everything is read back at once, and pixels that differ are counted.
"""
COMPARE = """Compare two annotators of the same pictures: ``annotations compare A B``.

A and B are labelled folders, folders of masks or of annotation files, or runs. How far two people
agree is the ceiling of every score: IoU and Dice of each class, Cohen's kappa, how well borders
meet, which class one takes for which, and pictures of where they differ.
"""


@dataclass(frozen=True, repr=False, eq=False)
class ExportSettings(ToolSettings):
    """Flags of ``annotations export``."""

    masks: str = flag(
        "",
        "data",
        "run of eval_model.py or phase_map, labelled folder, or folder of masks",
        required=True,
        positional=True,
        leads=paths.images,
    )
    format: str = flag(
        "",
        "data",
        "program or format: labelme, coco, cvat, ...",
        required=True,
        check=format_problem,
    )
    output_dir: str = flag("", "run", "folder to be made for the files", required=True)
    images: str | None = flag(
        None,
        "data",
        "folder of the micrographs",
        auto="what the run or the folder says",
        leads=paths.folder,
        first=True,
    )
    classes: str | None = flag(
        None,
        "data",
        "class names of masks that are no run's, a YAML file, binary or binary:128",
        check=classes_problem,
        leads=paths.class_file,
        first=True,
    )
    every_class: bool = flag(
        False,
        "data",
        "draw the first class too, which otherwise is what nothing covers (scribbles: always)",
        first=True,
    )


@dataclass(frozen=True, repr=False, eq=False)
class CompareSettings(ToolSettings):
    """Flags of ``annotations compare``."""

    a: str = flag(
        "",
        "data",
        "masks or annotations of the first annotator",
        required=True,
        positional=True,
        leads=paths.images,
    )
    b: str = flag(
        "",
        "data",
        "masks or annotations of the second annotator",
        required=True,
        positional=True,
        leads=paths.images,
    )
    images: str | None = flag(
        None,
        "data",
        "folder of the annotated pictures, where they lie in neither folder",
        auto="those in A or B; none are drawn upon without",
        leads=paths.folder,
        first=True,
    )
    classes: str | None = flag(
        None,
        "data",
        "class names of the masks, a YAML file, binary or binary:128",
        check=classes_problem,
        leads=paths.class_file,
        first=True,
    )
    output_dir: str | None = flag(
        None,
        "run",
        "folder of the results",
        auto="experiments/compare/A_B",
        first=True,
    )
    overwrite: bool = flag(False, "run", "replace existing results")
