"""``--semi auto``: trained with labels alone and with pictures without labels; the better is kept.

Both begin with the same weights, take the same steps and see the same labelled crops. What chooses
is the validation, as it chooses the best step of each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matssl import report
from matssl.core import checkpoint, run_folder, runtime
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_path, disk_errors
from matssl.core.tables import percent
from matssl.stages import resume
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune import loop, several, start
from matssl.stages.finetune.semi import watch
from matssl.stages.finetune.semi_settings import AUTO_METHOD, NONE
from matssl.stages.finetune.settings import FinetuneSettings

# What goes on from what, and which was kept.
PLAN, CHOICE, BEST = "semi_auto.json", "semi_choice.json", "best.ckpt"
# Folder of each training and what it learns by.
ARMS = {"labels": NONE, AUTO_METHOD: AUTO_METHOD}


def train_both(settings: FinetuneSettings, argv: Sequence[str]) -> Path:
    """Train both, and return the folder of both with the better one's model.

    Args:
        settings: of train_finetune.py, with ``semi`` auto.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: anything the user can mend; a finished training is kept.
    """
    settings, rt, root = start.begun(settings)
    settings = replace(settings, name=root.name)
    RunFolder.check(root, settings.resume, settings.overwrite, marks=(PLAN,))
    before = several.stored(root / PLAN, "arms") if settings.resume else {}
    settings = several.as_before(settings, before)
    settings, dataset, known, found = start.examined(settings, rt, root)
    train, val = reading.parted(settings, known)
    if not val:
        raise UserError(
            f"--semi auto keeps what is better on validation images, and {dataset.root} has none; "
            f"label another picture, or name a method (--semi {AUTO_METHOD})"
        )
    inputs = reading.load(dataset, train, val, found.record)
    plan = several.plan(settings, inputs.train, arms=list(ARMS), identity=inputs.identity)
    if before:
        several.refuse_other(before, plan, root)
        if before["identity"] != plan["identity"]:
            raise UserError(f"the labelled images changed since {root} began; {several.INSTEAD}")
    several.check(settings, len(inputs.train.planes), inputs.table, rt)
    with_pool, facts = watch.gathered(settings, rt, inputs, found.text())
    folder, states = several.opened(
        settings, rt, root, list(ARMS), PLAN, plan, inputs.table, facts, argv
    )
    number = 0
    try:
        with disk_errors(folder):
            for number, (name, state) in enumerate(zip(ARMS, states, strict=True), start=1):
                folder.status("running", training=number, trainings=len(ARMS))
                alone = ARMS[name] == NONE
                several.take(
                    replace(settings, semi=ARMS[name]),
                    rt,
                    "labels alone" if alone else f"{name} with pictures without labels",
                    state,
                    "What is finished is kept",
                    partial(
                        loop.trained,
                        rt=rt,
                        root=root / name,
                        inputs=inputs if alone else with_pool,
                        facts=facts,
                        argv=argv,
                    ),
                )
                rt.barrier()
            if rt.is_main:
                _finish(settings, folder)
    except BaseException as error:
        resume.note_end(folder, number, error)
        raise
    finally:
        runtime.close()
    return root


def better(tops: Mapping[str, float]) -> str:
    """Return the training that is kept: labels alone, unless the other one is really better.

    Args:
        tops: of each training its best figure on the validation images, as ``--monitor`` counts.
    """
    first, second = ARMS
    return second if tops[second] > tops[first] else first


def _finish(settings: FinetuneSettings, folder: RunFolder) -> None:
    """Keep the better model, and say so."""
    root = folder.root
    found: dict[str, dict[str, Any]] = {
        name: checkpoint.load(root / name / BEST, stage="finetune")["progress"] for name in ARMS
    }
    kept = better({name: float(facts["top"]) for name, facts in found.items()})
    with atomic_path(folder.path(BEST)) as temporary:
        shutil.copyfile(root / kept / BEST, temporary)
    scores = {name: float(facts["best"]) for name, facts in found.items()}
    folder.write_json(CHOICE, {"kept": kept, "monitor": settings.monitor, "miou": scores})
    first, second = ARMS
    gain = 100 * (scores[second] - scores[first])
    said = (
        f"{second} with pictures without labels reaches a mean IoU of {percent(scores[second])} % "
        f"on the validation images, labels alone {percent(scores[first])} % ({gain:+.1f} points): "
        f"{'pictures without labels' if kept == second else 'labels alone'} kept"
    )
    rows = [
        {
            "training": name,
            "validation mIoU in %": 100 * scores[name],
            "step of the best model": int(found[name]["best_step"]),
            "kept": "yes" if name == kept else "no",
        }
        for name in ARMS
    ]
    note = (
        "One seed, and the validation images that chose the step of each: a difference of a point "
        f"or two may be chance. The report of each training lies in {first}/ and {second}/."
    )
    sections = [
        ("", report.headline([(f"{percent(scores[kept])} %", "validation mIoU"), (kept, "kept")])),
        ("With and without unlabelled pictures", report.note(f"{said}.") + report.table(rows)),
        ("What that is worth", report.note(note)),
        ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
    ]
    report.write(root / "report.html", f"Fine-tuning: {root.name}", "--semi auto", sections)
    facts = {"best_miou": scores[kept], "best_step": int(found[kept]["best_step"])}
    folder.status("done", kept=kept, **facts)
    print(f"\n{said}\ndone: {root / BEST}\n      report: {root / 'report.html'}", flush=True)
