"""Settings of ``python -m matssl.tools.loop``; nothing here imports torch or numpy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from matssl.core import paths
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import (
    LARGEST_SEED,
    PRECISIONS,
    SpecimenSettings,
    ToolSettings,
    classes_problem,
    device_problem,
)

DESCRIPTION = (
    "Watch a folder: new pictures are looked at, predicted and measured, the ones worth correcting "
    "are laid out in FOLDER/to_correct, what comes back to FOLDER/corrected trains the model "
    "again, and the new model takes the place of the old one where the frozen validation images "
    "say so. Every step is a line of FOLDER/loop/ledger.jsonl; FOLDER/loop/loop.html shows it."
)
# When a new model takes the place of the best.
CLEAR, RISING = "clear", "rising"
# Value of --test for no test images.
NONE = "none"
# Flags of which a change is worth a line of the ledger.
PLAN = (
    *("n", "retrain_after", "method", "promote", "steps", "training", "seed", "group_regex"),
    *("specimens", "pixel_size", "page", "crop_bottom", "format"),
)

# Flags that say with what a loop begins, and have no other effect later.
BEGINNING = ("model", "labelled", "validation", "test", "classes")


def images_problem(path: str) -> str:
    """Say what is wrong with the path of a labelled folder or of a list of names."""
    return "" if os.path.exists(path) else paths.file_list(path)


def test_problem(path: str) -> str:
    """Say what is wrong with ``--test``, which may be none."""
    return "" if path == NONE else images_problem(path)


@dataclass(frozen=True, repr=False, eq=False)
class LoopSettings(SpecimenSettings, ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "folder that pictures come to; FOLDER/corrected takes masks and annotations",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    model: str | None = flag(
        None,
        "model",
        "best.ckpt of train_finetune.py to begin with",
        auto="trained on the first masks",
        first=True,
        leads=paths.run,
    )
    labelled: str | None = flag(
        None,
        "data",
        "labelled folder of any layout whose masks are the first ones; its val and test images "
        "are frozen as such",
        auto="the first masks in FOLDER/corrected",
        first=True,
        leads=paths.folder,
    )
    validation: str | None = flag(
        None,
        "data",
        "images that judge every new model, never trained on: a labelled folder, or a text file of "
        "names among the first labelled ones",
        auto="cut by specimen from the first labelled ones",
        first=True,
        leads=images_problem,
    )
    test: str | None = flag(
        None,
        "data",
        "images for --open_test, in the same way; none: there are none",
        auto="cut by specimen where the validation images are",
        first=True,
        leads=test_problem,
    )
    classes: str | None = flag(
        None,
        "data",
        "class names in order (a,b,c), a class file, binary or binary:128, for the first masks",
        auto="as the model has them, or found from the first masks",
        check=classes_problem,
        leads=paths.class_file,
        commas=True,
    )
    n: int = flag(5, "loop", "pictures to correct in a round", low=1, high=1000, first=True)
    method: str = flag("auto", "loop", "how they are chosen, see select_images --method")
    retrain_after: int | None = flag(
        None,
        "loop",
        "new masks after which the model is trained again, although others are still asked for",
        auto="when all that were asked for have come back",
        low=1,
        high=100_000,
    )
    promote: str = flag(
        CLEAR,
        "loop",
        "with five or more validation specimens a new model is promoted where the 95 % interval of "
        "its gain lies above zero (clear), or where the mean rises and no class falls by more than "
        "a point (rising, the rule below five)",
        choices=(CLEAR, RISING),
    )
    steps: int | None = flag(
        None, "training", "steps of a training", auto="as train_finetune.py", low=1
    )
    training: str | None = flag(
        None,
        "training",
        "YAML or JSON file of further flags of train_finetune.py, for every training",
        leads=paths.file,
    )
    seed: int = flag(0, "training", "seed of every training and cut", low=0, high=LARGEST_SEED)
    format: str | None = flag(
        None, "results", "also write the masks to correct in this annotation format"
    )
    once: bool = flag(
        False, "run", "do what there is to do and stop, as a scheduler wants it", first=True
    )
    every: float = flag(10.0, "run", "seconds between two looks", above=0, high=86_400)
    settle: float = flag(
        2.0,
        "run",
        "seconds for which a file must not change before it is read: it may still be copied",
        low=0,
        high=3600,
    )
    status: bool = flag(False, "run", "only say how the loop stands", first=True)
    open_test: bool = flag(
        False, "run", "score the best model on the frozen test images, once and for all", first=True
    )
    device: str = flag("auto", "run", "auto, cpu, cuda or cuda:N", check=device_problem)
    threads: int | None = flag(
        None, "run", "CPU threads of torch", auto="all cores", low=1, high=1024
    )
    precision: str = flag(
        "auto", "run", "auto is bf16 where the hardware has it", choices=PRECISIONS
    )
    quiet: bool = flag(False, "run", "print only warnings and the result")

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        if not (self.status and self.open_test):
            return []
        told = "--status looks and --open_test scores; give one of them"
        return [Problem(told, ("status", "open_test"))]


def resolve(argv: Sequence[str], here: bool = False) -> LoopSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """
    return parse_one(
        LoopSettings,
        argv,
        DESCRIPTION,
        problems=LoopSettings.problems,
        prog="python -m matssl.tools.loop",
        here=here,
    )
