"""Fine-tuning in stages: each on its own data sets, from the best model of the one before.

One split, one class table and one normalisation hold for all stages, so that no image that tests or
validates in one of them trains another. Each stage is a run folder of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core import runtime
from matssl.core.arrays import decided
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_path, atomic_write_text, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.tables import csv_text
from matssl.core.wording import counted
from matssl.data import crops, preprocess
from matssl.data.crops import Labelled
from matssl.data.layouts import Dataset, Pair
from matssl.data.preprocess import Preprocess
from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.preflight import Preflight
from matssl.stages import console, resume
from matssl.stages.finetune import loop, several, start
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.stages.finetune.stage_parts import Part, parted
from matssl.stages.finetune.stage_plan import Stage, read_stages
from matssl.trained.segmenter import Segmenter

# What a training in stages goes on from, and its table.
PLAN, TABLE = "stages.json", "stages.csv"
BEST = "best.ckpt"


def train_in_stages(settings: FinetuneSettings, argv: Sequence[str]) -> Path:
    """Train all stages and return the folder of all of them, with the last one's best model.

    Args:
        settings: of train_finetune.py, with ``stages``.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; finished stages are kept.
    """
    settings, rt, root = start.begun(settings)
    settings = replace(settings, name=root.name)
    assert settings.stages is not None
    stages, remarks = read_stages(Path(settings.stages))
    settings = _with_weights(settings, stages[0])
    RunFolder.check(root, settings.resume, settings.overwrite, marks=(PLAN,))
    before = several.stored(root / PLAN, "stages") if settings.resume else {}
    settings = several.as_before(settings, before)
    settings, dataset, known, found = start.examined(settings, rt, root)
    parts = parted(known, settings, stages)
    for note in (*remarks, *_described(parts, settings)):
        console.say(settings, rt, note)
    pairs = {pair.image: pair for part in parts for pair in (*part.learned, *part.val)}
    assert dataset.table is not None
    whole = crops.load(list(pairs.values()), found.record, dataset.table)
    record = _record(parts, whole, found)
    settings = start.sampled(settings, dataset.table, whole)
    plan = _plan(settings, parts, whole, dataset.root)
    if before:
        _refuse_other(before, plan, root)
    for part in parts:
        several.check(_own(settings, part, None), len(part.learned), dataset.table, rt)
    names = [part.folder for part in parts]
    folder, states = several.opened(
        settings, rt, root, names, PLAN, plan, dataset.table, found.text(), argv
    )
    number = 0
    try:
        with disk_errors(folder):
            after: Path | None = None
            for part, state in zip(parts, states, strict=True):
                number = part.number
                folder.status("running", stage=number, stages=len(parts))
                inputs = _inputs(part, known, whole, record)
                _train(settings, rt, root, part, state, inputs, found, argv, after)
                after = root / part.folder / BEST
                rt.barrier()
            if rt.is_main:
                assert after is not None
                _finish(settings, rt, folder, parts, whole, after)
    except BaseException as error:
        resume.note_end(folder, number, error)
        raise
    finally:
        runtime.close()
    return root


def _described(parts: Sequence[Part], settings: FinetuneSettings) -> list[str]:
    """Return in words what each stage learns from."""
    lines = [f"stages  {len(parts)} of {settings.stages}, each from the best model before it"]
    for part in parts:
        own = _own(settings, part, None)
        length = f"{own.epochs} epochs" if own.epochs else f"{own.steps} steps"
        encoder = f"encoder {own.lr * own.encoder_lr_factor:g}"
        if own.finetune_blocks == "none":
            encoder = "encoder as it is"
        again = ""
        if part.replayed:
            share = 100 * len(part.replayed) / len(part.learned)
            again = f" and {len(part.replayed)} of former stages ({share:.0f} %)"
        held = f"{len(part.val)} validate" if part.val else "none validates: its last model goes on"
        lines.append(
            f"  {part.number:>3}   {part.stage.name}: {counted(len(part.train), 'image')} of "
            f"{', '.join(part.stage.datasets) or 'all data sets'}{again}, {held}; {length}, batch "
            f"{own.batch_size}, rate {own.lr:g}, {encoder}"
        )
    return lines


def _with_weights(settings: FinetuneSettings, first: Stage) -> FinetuneSettings:
    """Return the settings with the weights that the first stage names.

    Raises:
        UserError: the command names others.
    """
    if first.pretrained_encoder_path is None:
        return settings
    if settings.ssl_weights_path not in (None, first.pretrained_encoder_path):
        raise UserError(
            f"--ssl_weights_path {settings.ssl_weights_path} and the pretrained_encoder_path of "
            f"{settings.stages} ({first.pretrained_encoder_path}) differ; give one of them"
        )
    return replace(settings, ssl_weights_path=first.pretrained_encoder_path)


def _own(settings: FinetuneSettings, part: Part, after: Path | None) -> FinetuneSettings:
    """Return the settings of a stage.

    Args:
        settings: of the command.
        part: the stage.
        after: best model of the stage before, None for the first.
    """
    changes: dict[str, Any] = part.stage.changes(settings.lr)
    own = replace(settings, **changes)
    if part.number > 1:
        own = replace(own, ssl_weights_path=str(after), weights="none", whole_model=True)
    return own


def _record(parts: Sequence[Part], whole: Labelled, found: Preflight) -> Preprocess:
    """Return how images are read in every stage: mean and spread of all training images.

    A model that goes on must see the grey levels it has learned.
    """
    taught = {pair.image for part in parts for pair in part.train}
    planes = [p for p, pair in zip(whole.planes, whole.pairs, strict=True) if pair.image in taught]
    return preprocess.measure(found.record, planes)


def _inputs(part: Part, known: Dataset, whole: Labelled, record: Preprocess) -> Inputs:
    """Return the images of a stage, of those that were decoded once for all of them."""
    place = {pair.image: number for number, pair in enumerate(whole.pairs)}

    def taken(pairs: Sequence[Pair]) -> Labelled:
        return replace(whole.take([place[pair.image] for pair in pairs]), pairs=tuple(pairs))

    table = known.table
    assert table is not None
    return Inputs(known, table, taken(part.learned), taken(part.val) if part.val else None, record)


def _train(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    part: Part,
    state: str,
    inputs: Inputs,
    found: Preflight,
    argv: Sequence[str],
    after: Path | None,
) -> None:
    """Train one stage, or what is left of it.

    Raises:
        UserError: it failed, or the weights of the one before do not arrive; how to go on is said.
    """
    title = f"stage {part.number} ({part.stage.name})"
    own = settings if state == "done" else _own(settings, part, after)

    def train(own: FinetuneSettings) -> None:
        loop.trained(own, rt, root / part.folder, inputs, found.text(), argv)

    several.take(own, rt, title, state, "Finished stages are kept", train)


def _finish(
    settings: FinetuneSettings,
    rt: Runtime,
    folder: RunFolder,
    parts: Sequence[Part],
    whole: Labelled,
    last: Path,
) -> None:
    """Give the folder its best model, and write what each stage's model scores on every stage."""
    with atomic_path(folder.path(BEST)) as temporary:
        shutil.copyfile(last, temporary)
    rows = forgetting(folder.root, parts, whole, rt)
    atomic_write_text(folder.path(TABLE), csv_text(rows))
    folder.status("done", stages=len(parts))
    names = [part.stage.name for part in parts if part.val]
    if names:
        console.say(settings, rt, f"\nmIoU on the validation images of {', '.join(names)}:")
    for row in rows if names else []:
        scores = (row[f"miou {name}"] for name in names)
        shown = "  ".join(f"{100 * float(str(s)):5.1f}" for s in scores)
        console.say(settings, rt, f"  after {row['stage']:<20} {shown}")
    print(f"      model after {len(parts)} stages: {folder.path(BEST)}", flush=True)


def forgetting(
    root: Path, parts: Sequence[Part], whole: Labelled, rt: Runtime
) -> list[dict[str, object]]:
    """Return a row for each stage: the mean IoU of its model on the validation images of all.

    A stage whose score falls in later rows is being forgotten. Pixels of the images of a stage are
    counted together; classes that are nowhere have no IoU.

    Args:
        root: of all stages.
        parts: trained.
        whole: the decoded images.
        rt: where it computes.
    """
    place = {pair.image: number for number, pair in enumerate(whole.pairs)}
    rows: list[dict[str, object]] = []
    for part in parts:
        row: dict[str, object] = {"stage": part.stage.name, "folder": part.folder}
        row |= {"images": len(part.train), "replayed": len(part.replayed)}
        segmenter = Segmenter.load(
            root / part.folder / BEST, device=str(rt.device), precision=rt.precision
        )
        for other in parts:
            if not other.val:
                continue
            classes = segmenter.table.num_classes
            total = np.zeros((classes, classes), np.int64)
            for pair in other.val:
                at = place[pair.image]
                plane, mask = whole.planes[at], whole.masks[at]
                found = segmenter.network.probabilities(segmenter.record.tensor(plane), classes)
                said = decided(found, segmenter.threshold, segmenter.factors)
                total += counting.confusion(mask, said, classes)
            row[f"miou {other.stage.name}"] = round(float(overlap.miou(total)), 4)
        rows.append(row)
    return rows


def _plan(
    settings: FinetuneSettings, parts: Sequence[Part], whole: Labelled, root: Path
) -> dict[str, Any]:
    """Return what a continuation must agree with, as plain values."""
    stages = [
        {
            "name": part.stage.name,
            "settings": part.stage.changes(settings.lr),
            "train": several.names(part.train, root),
            "replayed": several.names(part.replayed, root),
            "val": several.names(part.val, root),
        }
        for part in parts
    ]
    return several.plan(settings, whole, stages=stages)


def _refuse_other(before: Mapping[str, Any], plan: Mapping[str, Any], root: Path) -> None:
    """Refuse to go on with other settings, stages or images than the run was started with.

    Raises:
        UserError: the sentence names what differs.
    """
    several.refuse_other(before, plan, root)
    if before["stages"] != plan["stages"]:
        differ = [
            new["name"]
            for old, new in zip(before["stages"], plan["stages"], strict=False)
            if old != new
        ]
        what = f"stage {differ[0]}" if differ else "the number of stages"
        raise UserError(f"{what} changed since {root} began; {several.INSTEAD}")
    if before["data"] != plan["data"]:
        raise UserError(f"the labelled images changed since {root} began; {several.INSTEAD}")
