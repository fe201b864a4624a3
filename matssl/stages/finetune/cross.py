"""Cross-validation: a model for each fold, scored on specimens that it has not seen.

Each fold is a run as any other, by the loop of a single training, in a folder of its own. Its
held-out part chooses nothing: the best step is that of a validation cut inside the fold's training
images, as a single training cuts it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from matssl.core import runtime
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.tables import csv_text
from matssl.core.wording import counted, cut
from matssl.data import crops, preprocess, specimens
from matssl.data.crops import Labelled
from matssl.data.layouts import Dataset, Pair
from matssl.metrics.score import Gathered
from matssl.preflight import Preflight
from matssl.stages import console, resume
from matssl.stages.finetune import cross_report, loop, several, start
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.rare_settings import VALIDATION
from matssl.stages.finetune.settings import ALL, FinetuneSettings

# What a cross-validation goes on from: which image is in which fold, and how they are trained.
PLAN = "cross_validation.json"
# All folds as one model.
ENSEMBLE = "ensemble.ckpt"
# Factors of the classes belong to the model whose validation images chose them.
APART = (
    "note    --decision validation acts in each fold by its own validation images; all folds as "
    "one take the most likely class"
)
# An image that was scored by the model of its fold, which its split names.
Scored = tuple[Pair, Gathered]


class Scorer(Protocol):
    """Scores images by models that have not seen them, and writes masks, tables and the report."""

    def __call__(
        self,
        folder: RunFolder,
        parts: Sequence[tuple[Path, Dataset, Sequence[Pair]]],
        found: Preflight,
        rt: Runtime,
        *,
        seed: int,
        quiet: bool,
        beside: Callable[[Sequence[Scored]], Sequence[tuple[str, str]]],
    ) -> None:
        """Score and write.

        Args:
            folder: of the results.
            parts: of each model its checkpoint, the folder as it saw it, and what it is scored on.
            found: what the images hold.
            rt: where it computes.
            seed: of resamples.
            quiet: whether only the result is printed.
            beside: is given every scored image and returns further parts of the report.
        """


@dataclass(frozen=True)
class Fold:
    """One fold.

    Attributes:
        number: from 1.
        dataset: all images with the splits they have in this fold.
        train: images that are learned from.
        val: images inside the training part that choose the step; empty where there are too few.
        held: images that neither teach nor choose.
    """

    number: int
    dataset: Dataset
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    held: tuple[Pair, ...]

    @property
    def name(self) -> str:
        """Name of its folder and of its split."""
        return f"fold_{self.number}"


def cross_validate(settings: FinetuneSettings, argv: Sequence[str], score: Scorer) -> Path:
    """Train all folds, score each on its held-out part, and return the folder of all of them.

    Args:
        settings: of train_finetune.py, with ``folds``.
        argv: what the user typed, for command.txt.
        score: of the held-out parts.

    Raises:
        UserError: anything the user can mend, a fold that fails among it; finished folds are kept.
    """
    settings, rt, root = start.begun(settings)
    settings = replace(settings, name=root.name)
    RunFolder.check(root, settings.resume, settings.overwrite, marks=(PLAN,))
    before = several.stored(root / PLAN, "folds") if settings.resume else {}
    settings = several.as_before(settings, before)
    settings, dataset, known, found = start.examined(settings, rt, root)
    folds = cut_folds(known, settings)
    said = _described(folds, dataset)
    console.say(settings, rt, said)
    if settings.decision == VALIDATION:
        console.say(settings, rt, APART)
    pairs = sorted((pair for fold in folds for pair in fold.held), key=lambda pair: pair.image)
    assert dataset.table is not None
    whole = crops.load(pairs, found.record, dataset.table)
    settings = start.sampled(settings, dataset.table, whole)
    plan = _plan(settings, folds, whole)
    if before:
        _refuse_other(before, plan, root)
    # Before anything is written; the fold with the fewest images has the smallest batch.
    _check(settings, min(folds, key=lambda fold: len(fold.train)), rt)

    folder, states = several.opened(
        settings,
        rt,
        root,
        [fold.name for fold in folds],
        PLAN,
        plan,
        dataset.table,
        f"{found.text()}\n{said}",
        argv,
        {"folds.csv": csv_text(_rows(folds, dataset))},
    )
    number = 0
    try:
        with disk_errors(folder):
            for fold, state in zip(folds, states, strict=True):
                number = fold.number
                folder.status("running", fold=number, folds=len(folds))
                _train(settings, rt, root, fold, state, whole, found, argv)
                rt.barrier()
            if rt.is_main:
                join(folder, folds, settings)
                _score(settings, rt, folder, folds, found, score)
    except BaseException as error:
        resume.note_end(folder, number, error)
        raise
    finally:
        runtime.close()
    return root


def cut_folds(known: Dataset, settings: FinetuneSettings) -> list[Fold]:
    """Return the folds of all labelled images that are no test.

    Args:
        known: images with their splits, without those of no label.
        settings: with the number of folds and the seed.

    Raises:
        UserError: more folds than specimens.
    """
    pairs = [p for p in known.pairs if p.split in reading.OPENED and p.mask is not None]
    # Folders list files in any order.
    pairs.sort(key=lambda pair: pair.image)
    groups = {pair.group for pair in pairs}
    count = len(groups) if settings.folds == ALL else int(settings.folds or 0)
    if not 2 <= count <= len(groups):
        told = f"{settings.folds} ({len(groups)})" if settings.folds == ALL else settings.folds
        most = f"{len(groups)} at most" if len(groups) > 1 else "none here"
        raise UserError(
            f"--folds {told}: {counted(len(pairs), 'labelled image')} of "
            f"{counted(len(groups), 'specimen')} in {known.root}, and images of one specimen are "
            f"never parted, so {most}; label more specimens, or say which images are of which with "
            "--specimens or --group_regex"
        )
    held_out = specimens.grouped_folds(pairs, count, settings.seed)
    rest = [pair for pair in known.pairs if pair.split not in reading.OPENED]
    folds = []
    for number, held in enumerate(held_out, start=1):
        name = f"fold_{number}"
        own = [
            replace(pair, split=name if place in held else "train")
            for place, pair in enumerate(pairs)
        ]
        dataset = replace(known, pairs=(*own, *rest))
        train, val = reading.parted(settings, dataset)
        folds.append(Fold(number, dataset, train, val, dataset.split(name)))
    return folds


def _described(folds: Sequence[Fold], dataset: Dataset) -> str:
    """Return in words what is folded, what stays closed and what chooses the step."""
    held = [pair for fold in folds for pair in fold.held]
    groups = len({pair.group for pair in held})
    closed = [p for p in dataset.pairs if p.split not in reading.OPENED and p.mask is not None]
    lines = [
        f"folds   {len(folds)} of {counted(groups, 'specimen')} "
        f"({counted(len(held), 'labelled image')} of train and val)"
    ]
    if closed:
        lines.append(
            f"        {counted(len(closed), 'test image')} stay closed; a --splits that names no "
            "test folds all"
        )
    for fold in folds:
        own = sorted({pair.group for pair in fold.held})
        shown = cut(", ".join(own), 60)
        chosen = f"{len(fold.val)} inside validate"
        if not fold.val:
            chosen = "none inside validate: too few to choose the step by a cut"
        lines.append(
            f"  {fold.number:>3}   {len(fold.train)} to train, {chosen}, {len(fold.held)} held out "
            f"({shown})"
        )
        notes = specimens.validated_inside(fold.dataset.pairs, fold.train, fold.val)
        lines += [f"        note: {note}" for note in notes]
    return "\n".join(lines)


def _rows(folds: Sequence[Fold], dataset: Dataset) -> list[dict[str, object]]:
    """Return a row an image: its fold, its specimen, and its part in every fold."""
    held = {pair.image: (pair, fold.number) for fold in folds for pair in fold.held}
    rows = []
    for image, (pair, number) in sorted(held.items()):
        row: dict[str, object] = {"image": str(image), "specimen": pair.group, "fold": number}
        for fold in folds:
            parts = {"train": fold.train, "val": fold.val, "held out": fold.held}
            inside = (name for name, own in parts.items() if image in {p.image for p in own})
            row[fold.name] = next(inside, "unused")
        rows.append(row)
    return rows


def _plan(settings: FinetuneSettings, folds: Sequence[Fold], whole: Labelled) -> dict[str, Any]:
    """Return what a continuation must agree with, as plain values."""
    root = folds[0].dataset.root
    parts = [
        {
            "train": several.names(fold.train, root),
            "val": several.names(fold.val, root),
            "held_out": several.names(fold.held, root),
        }
        for fold in folds
    ]
    return several.plan(settings, whole, folds=parts)


def _refuse_other(before: Mapping[str, Any], plan: Mapping[str, Any], root: Path) -> None:
    """Refuse to go on with other settings, images or folds than the run was started with.

    Raises:
        UserError: the sentence names what differs.
    """
    several.refuse_other(before, plan, root)
    if before["data"] != plan["data"] or before["folds"] != plan["folds"]:
        raise UserError(
            f"the labelled images, or which are of one specimen, changed since {root} began; "
            f"{several.INSTEAD}"
        )


def _check(settings: FinetuneSettings, fold: Fold, rt: Runtime) -> None:
    """Refuse a fold that cannot be trained."""
    if settings.classifies:
        return
    assert fold.dataset.table is not None
    several.check(settings, len(fold.train), fold.dataset.table, rt)


def _train(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    fold: Fold,
    state: str,
    whole: Labelled,
    found: Preflight,
    argv: Sequence[str],
) -> None:
    """Train one fold, or what is left of it.

    Raises:
        UserError: it failed; how to go on is said.
    """
    # One look tells; a start that is to be chosen is chosen in each, without what it holds out.
    own = replace(settings, check_start="none") if fold.number > 1 else settings

    def train(own: FinetuneSettings) -> None:
        inputs = inputs_of(fold, whole, found)
        _note_absent(settings, rt, fold, inputs)
        loop.trained(own, rt, root / fold.name, inputs, found.text(), argv)

    title = f"fold {fold.number} of {root.name}"
    kept = "No table is made without it, finished folds are kept"
    several.take(own, rt, title, state, kept, train)


def inputs_of(fold: Fold, whole: Labelled, found: Preflight) -> Inputs:
    """Return the images of a fold, of those that were decoded once for all of them.

    Mean and spread are those of its own training images.
    """
    place = {pair.image: number for number, pair in enumerate(whole.pairs)}

    def part(pairs: Sequence[Pair]) -> Labelled:
        return replace(whole.take([place[pair.image] for pair in pairs]), pairs=tuple(pairs))

    table = fold.dataset.table
    assert table is not None
    train = part(fold.train)
    record = preprocess.measure(found.record, train.planes)
    return Inputs(fold.dataset, table, train, part(fold.val) if fold.val else None, record)


def _note_absent(settings: FinetuneSettings, rt: Runtime, fold: Fold, inputs: Inputs) -> None:
    """Say which classes a fold cannot learn since no training image of it shows them."""
    shown = {int(value) for mask in inputs.train.masks for value in np.unique(mask)}
    absent = [name for index, name in enumerate(inputs.table.names) if index not in shown]
    if absent:
        console.say(
            settings,
            rt,
            f"note    fold {fold.number} has no labelled pixel of {', '.join(absent)} to learn "
            "from: its images are scored as they are, and lower the mean",
        )


def join(folder: RunFolder, folds: Sequence[Fold], settings: FinetuneSettings) -> None:
    """Write all folds as one model, whose probabilities are the mean of theirs.

    Args:
        folder: of all folds.
        folds: trained.
        settings: of the run.

    Raises:
        UserError: the checkpoint of a fold cannot be read.
    """
    roots = [folder.root / fold.name for fold in folds]
    dataset = folds[0].dataset.root.name
    several.join(folder.path(ENSEMBLE), roots, settings, dataset, {"folds": len(folds)})


def _score(
    settings: FinetuneSettings,
    rt: Runtime,
    folder: RunFolder,
    folds: Sequence[Fold],
    found: Preflight,
    score: Scorer,
) -> None:
    """Score every image by the model of its fold, and write the tables over the folds."""
    root = folder.root
    parts = [(root / fold.name / "best.ckpt", fold.dataset, fold.held) for fold in folds]
    names = {fold.number: root / fold.name for fold in folds}
    table = folds[0].dataset.table
    assert table is not None

    def beside(scored: Sequence[Scored]) -> list[tuple[str, str]]:
        return cross_report.write(folder, names, scored, table.names)

    score(folder, parts, found, rt, seed=settings.seed, quiet=settings.quiet, beside=beside)
    print(f"      {len(folds)} folds as one model: {root / ENSEMBLE}", flush=True)
