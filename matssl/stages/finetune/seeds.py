"""Several trainings that differ in their seed alone, as one model (``--ensemble``).

The mean of the probabilities of networks of other starts and other orders of crops is better than
most of them, and better calibrated (Lakshminarayanan et al. 2017, arXiv:1612.01474). Which images
train and which validate follows from ``--seed`` once for all of them. Each is a run folder of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from matssl import report
from matssl.core import checkpoint, run_folder, runtime, textfiles
from matssl.core.arrays import Array, decided
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_write_text, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.tables import csv_text, percent
from matssl.data.crops import Labelled
from matssl.metrics import calibration, overlap
from matssl.metrics import counts as counting
from matssl.metrics.calibration import Sample
from matssl.stages import console, resume
from matssl.stages.finetune import deciding, loop, several, start
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.rare_settings import VALIDATION
from matssl.stages.finetune.semi import watch
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained import member as member_of
from matssl.trained.segmenter import Segmenter

# What an ensemble goes on from, and its table.
PLAN, TABLE = "seeds.json", "seeds.csv"
BEST = "best.ckpt"


def train_ensemble(settings: FinetuneSettings, argv: Sequence[str]) -> Path:
    """Train a model for each seed and return the folder of all, with all as its best model.

    Args:
        settings: of train_finetune.py, with ``ensemble`` above 1.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; finished trainings are kept.
    """
    settings, rt, root = start.begun(settings)
    settings = replace(settings, name=root.name)
    RunFolder.check(root, settings.resume, settings.overwrite, marks=(PLAN,))
    before = several.stored(root / PLAN, "seeds") if settings.resume else {}
    settings = several.as_before(settings, before)
    settings, dataset, known, found = start.examined(settings, rt, root)
    train, val = reading.parted(settings, known)
    inputs = reading.load(dataset, train, val, found.record)
    settings = start.sampled(settings, inputs.table, inputs.train)
    seeds = [settings.seed + number for number in range(settings.ensemble)]
    console.say(settings, rt, f"seeds   {', '.join(map(str, seeds))}: one model in the end")
    plan = several.plan(settings, inputs.train, seeds=seeds, validation=_identity(inputs.val))
    if before:
        _refuse_other(before, plan, root)
    several.check(settings, len(inputs.train.planes), inputs.table, rt)
    inputs, facts = watch.gathered(settings, rt, inputs, found.text())
    folder, states = several.opened(
        settings, rt, root, list(map(_name, seeds)), PLAN, plan, inputs.table, facts, argv
    )
    number = settings.seed
    try:
        with disk_errors(folder):
            for seed, state in zip(seeds, states, strict=True):
                number = seed
                folder.status("running", seed=seed, models=len(seeds))
                several.take(
                    replace(settings, seed=seed, ensemble=1),
                    rt,
                    f"seed {seed} of {root.name}",
                    state,
                    "Finished models are kept",
                    lambda own: loop.trained(own, rt, root / _name(own.seed), inputs, facts, argv),
                )
                rt.barrier()
            if rt.is_main:
                _finish(settings, rt, folder, seeds, inputs)
    except BaseException as error:
        resume.note_end(folder, number, error)
        raise
    finally:
        runtime.close()
    return root


def _name(seed: int) -> str:
    return f"seed_{seed}"


def _identity(val: Labelled | None) -> str:
    return "" if val is None else val.identity()


def _refuse_other(before: Mapping[str, Any], plan: Mapping[str, Any], root: Path) -> None:
    """Refuse to go on with other settings or images than the run was started with.

    Raises:
        UserError: the sentence names what differs.
    """
    several.refuse_other(before, plan, root)
    if any(before.get(name) != plan[name] for name in ("data", "validation")):
        raise UserError(f"the labelled images changed since {root} began; {several.INSTEAD}")


def _finish(
    settings: FinetuneSettings,
    rt: Runtime,
    folder: RunFolder,
    seeds: Sequence[int],
    inputs: Inputs,
) -> None:
    """Write all models as one, and what each and all of them score on the validation images."""
    roots = [folder.root / _name(seed) for seed in seeds]
    path = folder.path(BEST)
    several.join(path, roots, settings, inputs.dataset.root.name, {"seeds": len(seeds)})
    facts: dict[str, object] = {"models": len(seeds)}
    rows: list[dict[str, object]] = []
    if inputs.val is not None:
        # What is kept of each was validated at its end.
        stored = [textfiles.read_json(root / "status.json") for root in roots]
        together, samples = validated(path, inputs.val, rt)
        scores = [*(float(facts["best_miou"]) for facts in stored), together]
        names = [*map(_name, seeds), "all as one"]
        rows = [
            {"model": name, "val_miou": round(score, 4)}
            for name, score in zip(names, scores, strict=True)
        ]
        atomic_write_text(folder.path(TABLE), csv_text(rows))
        shown = ", ".join(f"{100 * score:.1f}" for score in scores[:-1])
        print(f"      validation mIoU {100 * scores[-1]:.1f} % as one ({shown} alone)", flush=True)
        facts["best_miou"] = together
        if settings.decision == VALIDATION:
            factors = deciding.choose(folder, samples, inputs.val, inputs.table.names)
            whole = checkpoint.load(path, stage="finetune")
            checkpoint.save(path, {**whole, "progress": {**whole["progress"], **factors}})
            print(f"      decision: {deciding.told(folder.root)}", flush=True)
    page = _report(folder.root, seeds, rows)
    folder.status("done", **facts)
    print(f"      {len(seeds)} models as one: {path}\n      report: {page}", flush=True)


def _report(root: Path, seeds: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page of an ensemble, and return where it lies.

    Args:
        root: its run folder.
        seeds: of its models.
        rows: of seeds.csv; empty where no image validates.
    """
    figures = [(str(len(seeds)), "models as one")]
    if rows:
        together = float(rows[-1]["val_miou"])
        figures.insert(0, (f"{percent(together)} %", "validation mIoU as one"))
    table = [{"model": r["model"], "validation mIoU %": 100 * r["val_miou"]} for r in rows]
    folders = ", ".join(f"{_name(seed)}/" for seed in seeds)
    note = "The mean of the models' probabilities, each tempered by its own temperature. "
    note += f"The report of each training lies in {folders}."
    sections = [
        ("", report.headline(figures)),
        ("Each and all as one", (report.table(table) if table else "") + report.note(note)),
        *deciding.section(root),
        ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
    ]
    path = root / "report.html"
    report.write(path, f"Fine-tuning: {root.name}", f"--ensemble {len(seeds)}", sections)
    return path


def validated(path: Path, val: Labelled, rt: Runtime) -> tuple[float, list[Sample]]:
    """Return the mean IoU of an ensemble on validation images, by the most likely class.

    Args:
        path: of the ensemble.
        val: the images; pixels of all of them are counted together.
        rt: where it computes.

    Returns:
        The mean IoU, and labelled pixels of each image with their mean probabilities.
    """
    samples: list[Sample] = []
    every = calibration.thinned(val.masks)
    whole = Segmenter.load(path, device=str(rt.device), precision=rt.precision)
    classes = whole.table.num_classes
    total = np.zeros((classes, classes), np.int64)
    for plane, mask in zip(val.planes, val.masks, strict=True):
        mean: Array | None = None
        for member in whole.members:
            found = member.probabilities(plane, classes)
            calibration.temper(found, member.temperature)
            mean = member_of.add(mean, found, member.of)
        assert mean is not None
        total += counting.confusion(mask, decided(mean, whole.threshold), classes)
        samples.append(calibration.sample(mean, mask, every))
    return float(overlap.miou(total)), samples
