"""Settings of ``python -m matssl.tools.measure``; nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.stages.measure.defect_settings import DefectSettings
from matssl.stages.measure.grain_settings import GrainSettings
from matssl.stages.measure.layer_settings import LayerSettings
from matssl.stages.measure.object_settings import ObjectSettings
from matssl.stages.settings import (
    EXPERIMENTS,
    MASK_FOLDER_HELP,
    SpecimenSettings,
    ToolSettings,
    classes_problem,
    name_problem,
)

DESCRIPTION = (
    "Measure masks: phase fractions, objects, grain size, layers, by specimen and with intervals. "
    "INPUT is a run of eval_model.py or phase_map, a labelled folder, or a folder of masks. Tables "
    "(CSV, XLSX, JSON), pictures and a report go to experiments/measure/NAME."
)
# Names of stages.measure.kinds.KINDS; a test holds that they agree.
WHAT = ("fractions", "objects", "grains", "layers")

# Points along a side of a grid.
MOST_POINTS = 1000


def what_problem(text: str) -> str:
    """Return what is wrong with ``--what``, "" where nothing is."""
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word not in WHAT]
    if not wrong:
        return ""
    return f"--what must be of {', '.join(WHAT)}, several between commas, not {wrong[0]!r}"


def grid_problem(text: str) -> str:
    """Return what is wrong with ``--grid``, "" where nothing is."""
    sides = re.fullmatch(r"(\d{1,4})[xX×](\d{1,4})", text.strip())
    if sides and all(1 <= int(side) <= MOST_POINTS for side in sides.groups()):
        return ""
    return (
        f"--grid must be rows x columns of 1 to {MOST_POINTS} points, such as 10x10, not {text!r}"
    )


@dataclass(frozen=True, repr=False, eq=False)
class MeasureSettings(
    ObjectSettings, GrainSettings, LayerSettings, DefectSettings, SpecimenSettings, ToolSettings
):
    """Flags of the measurement."""

    input: str = flag(
        "",
        "data",
        "run of eval_model.py or phase_map, labelled folder, or folder of masks",
        positional=True,
        first=True,
        leads=paths.folder,
    )
    images: str | None = flag(
        None, "data", "folder of the micrographs of INPUT's masks", leads=paths.folder, first=True
    )
    mask_folder: str | None = flag(None, "data", MASK_FOLDER_HELP)
    classes: str | None = flag(
        None,
        "data",
        "class names, a YAML file, binary or binary:128, for a labelled folder",
        check=classes_problem,
        leads=paths.class_file,
    )
    roi: str | None = flag(
        None,
        "data",
        "folder of regions of interest, pictures of the names of the images or masks: pixels at 0 "
        "count nowhere",
        leads=paths.folder,
        first=True,
    )
    split: str | None = flag(None, "data", "only this split of a labelled folder")
    what: str | None = flag(
        None,
        "measurement",
        f"{', '.join(WHAT)}; several between commas",
        auto="what the classes allow",
        check=what_problem,
        first=True,
        commas=True,
    )
    class_: str | None = flag(
        None,
        "measurement",
        "names of the classes to measure, between commas",
        auto="all",
        first=True,
        commas=True,
    )
    folds_from: str | None = flag(
        None,
        "measurement",
        "run of train_finetune.py --folds, or of eval_model.py on labelled images, whose held-out "
        "truth tells the classifier's error",
        leads=paths.folder,
        first=True,
    )
    compare: tuple[str, ...] = flag(
        (), "measurement", "two specimens, for their difference with its interval", first=True
    )
    grid: str | None = flag(
        None,
        "measurement",
        "also count the points of a grid, rows x columns, on every field (ASTM E562): 10x10",
        check=grid_problem,
    )
    name: str | None = flag(
        None, "run", "name of the results", auto="that of INPUT", check=name_problem
    )
    output_dir: str = flag(EXPERIMENTS, "run", "folder in which measure/NAME is made")
    overwrite: bool = flag(False, "run", "replace existing results of this name")
    quiet: bool = flag(False, "run", "print only the result")

    @property
    def wanted(self) -> tuple[str, ...]:
        """What ``--what`` names; empty where the classes decide."""
        return tuple(word.strip() for word in (self.what or "").split(",") if word.strip())

    @property
    def grid_points(self) -> tuple[int, int]:
        """Rows and columns of ``--grid``; (0, 0) without it."""
        if self.grid is None:
            return 0, 0
        rows, columns = re.split("[xX×]", self.grid.strip())
        return int(rows), int(columns)

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        wrong = self.object_problems(self.wanted) + self.defect_problems()
        wrong += self.layer_problems(self.wanted)
        if not self.input and self.algorithm is None:
            wrong.append(Problem("missing INPUT", ("input",)))
        if self.images is not None and self.mask_folder is not None:
            told = "--images says that INPUT holds the masks; leave --mask_folder out"
            wrong.append(Problem(told, ("images", "mask_folder")))
        if self.compare and len(set(self.compare)) != 2:
            told = f"--compare takes the names of two specimens, not {len(self.compare)}"
            if len(self.compare) == 2:
                told = f"--compare names {self.compare[0]} twice; give two specimens"
            wrong.append(Problem(told, ("compare",)))
        return wrong


def resolve(argv: Sequence[str], here: bool = False) -> MeasureSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """
    return parse_one(
        MeasureSettings,
        argv,
        DESCRIPTION,
        problems=MeasureSettings.problems,
        prog="python -m matssl.tools.measure",
        here=here,
    )
