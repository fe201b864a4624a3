"""Settings of ``python -m matssl.tools.select_images``; nothing here imports torch or numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matssl import selection
from matssl.core import paths
from matssl.core.flags import Problem, declared, flag
from matssl.core.parsing import parse_one
from matssl.stages.settings import (
    LabelSettings,
    RunSettings,
    SpecimenSettings,
    TileSettings,
    weights_file,
)

DESCRIPTION = (
    "Say which pictures of a folder to label next, and draw what the model is unsure of. A ranked "
    "list with every score, uncertainty maps, predicted masks to correct and a report go to "
    "experiments/select/POOL/NAME; the ledger beside it remembers what was proposed and which "
    "validation and test images are frozen. --learning_curve tries the methods on a labelled set."
)
# In place of weights: filters of the random forest, which need none.
FILTERS = "filters"
PASSES = ("auto", "ensemble", "dropout", "orientations")
# Of a folder whose masks are all there, budgets and seeds of the simulated annotator.
BUDGETS, SEEDS = (1, 2, 4, 8), 10
ARMS = ("entropy", "boundary_entropy", "clasp", "typiclust")
# Methods where MODEL segments (what won where it was measured, benchmarks/RESULTS.md), and where it
# gives features alone.
DEFAULT, FIRST = "entropy", "typiclust"
# Flags that act with --learning_curve alone, and those that act without it alone.
OF_CURVE = ("arms", "budgets", "seeds", "scored", "start", "resume")
OF_CHOICE = (
    *("n", "method", "region", "labelled", "ledger", "again", "passes", "passes_by", "band"),
    *("tta", "tile_size", "overlap", "features", "export"),
)


def model_problem(source: str) -> str:
    """Return what is wrong with MODEL: weights, their name, imagenet, none or filters."""
    return "" if source == FILTERS else weights_file(source)


def method_problem(word: str) -> str:
    """Return what is wrong with ``--method``, "" where nothing is."""
    told = selection.problem(word)
    return told and f"--method: {told}"


def arms_problem(word: str) -> str:
    """Return what is wrong with a method among ``--arms``, "" where nothing is."""
    told = selection.problem(word)
    return told and f"--arms: {told}"


@dataclass(frozen=True)
class SelectSettings(RunSettings, LabelSettings, SpecimenSettings, TileSettings):
    """Flags of the command."""

    model: str = flag(
        "",
        "model",
        "run of train_finetune.py, its ensemble, a weights file or run of train_ssl.py, imagenet, "
        "or filters (features without any network)",
        required=True,
        positional=True,
        leads=model_problem,
    )
    pool: str = flag(
        "",
        "data",
        "folder of micrographs; those with a mask count as labelled",
        required=True,
        positional=True,
        leads=paths.folder,
    )
    n: int = flag(5, "choice", "how many to choose", low=1, high=100_000, first=True)
    method: str | None = flag(
        None,
        "choice",
        f"{', '.join(selection.METHODS)}; several scores joined by their ranks: entropy+margin",
        auto=f"{DEFAULT} where MODEL segments, {FIRST} where it gives features alone",
        first=True,
        check=method_problem,
    )
    region: int | None = flag(
        None,
        "choice",
        "choose regions of about this side in pixels, which cover each picture without overlap",
        auto="whole pictures",
        low=32,
        high=65_536,
        first=True,
    )
    labelled: str | None = flag(
        None,
        "data",
        "labelled data set: its images and copies of them are not chosen, its validation and test "
        "images are frozen",
        leads=paths.folder,
        first=True,
    )
    ledger: str | None = flag(
        None, "data", "ledger to go on with", auto="ledger.jsonl beside the run folders of the pool"
    )
    again: bool = flag(False, "choice", "choose also what earlier rounds of the ledger proposed")
    spread: bool = flag(
        True,
        "choice",
        "specimens take turns, since pictures of one are much alike (--no-spread: they do not)",
    )
    power: float | None = flag(
        None,
        "choice",
        "of clasp: the larger, the less is left to chance",
        auto="1 + number of labelled pictures",
        above=0,
        high=1e6,
    )
    background: str | None = flag(
        None,
        "choice",
        "name of the class that is no foreground",
        auto="the class with most labelled pixels",
    )
    band: int = flag(
        3,
        "choice",
        "of the boundary scores: pixels within which another class is predicted",
        low=1,
        high=64,
    )
    passes: int = flag(
        8, "choice", "of bald: passes with dropout (an ensemble has its own number)", low=2, high=64
    )
    passes_by: str = flag(
        "auto",
        "choice",
        "of bald: what makes passes differ; auto: the models of an ensemble, else dropout where "
        "the network has any, else the eight orientations",
        choices=PASSES,
    )
    features: str | None = flag(
        None,
        "model",
        "weights that features are computed with, as MODEL",
        auto="those of MODEL",
        leads=model_problem,
    )
    encoder: str = flag("resnet18", "model", "encoder of weights that do not tell it")
    export: str | None = flag(
        None, "results", "write the predicted masks in this format, too, to be corrected there"
    )
    learning_curve: bool = flag(
        False,
        "learning curve",
        "POOL is a labelled set: repeat the loop with a simulated annotator, methods against "
        "chance",
        first=True,
    )
    arms: tuple[str, ...] = flag(
        ARMS,
        "learning curve",
        f"methods that are compared; {' and '.join(selection.CHANCE)} always are",
        check=arms_problem,
    )
    budgets: tuple[int, ...] = flag(
        BUDGETS, "learning curve", "labelled pictures at which models score", low=1, high=10_000
    )
    seeds: int = flag(
        SEEDS, "learning curve", "repetitions, each with its own cut and draws", low=1, high=1000
    )
    scored: str = flag(
        "cut",
        "learning curve",
        "images that score: a third of the training and validation images, cut by specimen anew "
        "for each seed, or those of val or test",
        choices=("cut", "val", "test"),
    )
    start: str = flag(
        "random",
        "learning curve",
        "how methods that need a model choose the first picture",
        choices=("random", "typiclust"),
    )
    resume: bool = flag(False, "run", "continue the learning curve of this name where it stopped")

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        wrong = []
        rising = all(a < b for a, b in zip(self.budgets[:-1], self.budgets[1:], strict=True))
        if not rising or len(self.budgets) < 2:
            told = f"--budgets {' '.join(map(str, self.budgets))} must be two or more that rise"
            wrong.append(Problem(told, ("budgets",)))
        if len(set(self.arms)) < len(self.arms):
            wrong.append(Problem("--arms names a method twice", ("arms",)))
        idle, told = (
            (OF_CHOICE, "not with --learning_curve")
            if self.learning_curve
            else (OF_CURVE, "with --learning_curve alone")
        )
        known = declared(SelectSettings)
        given = [name for name in idle if getattr(self, name) != known[name].default]
        wrong += [Problem(f"--{name} acts {told}", (name, "learning_curve")) for name in given]
        return wrong


def resolve(argv: Sequence[str], here: bool = False) -> SelectSettings:
    """Return what a command line says.

    Args:
        argv: without the program's name.
        here: whether it is to run here, so that what its paths lead to must be there.

    Raises:
        UserError: all that is wrong with it.
        SystemExit: after ``--help``.
    """
    return parse_one(
        SelectSettings,
        argv,
        DESCRIPTION,
        problems=SelectSettings.problems,
        prog="python -m matssl.tools.select_images",
        here=here,
    )
