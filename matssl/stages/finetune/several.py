"""Runs of several trainings, as folds, stages or seeds are: their plan, one of them, all as one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matssl.core import checkpoint, flags, textfiles
from matssl.core.damage import Damaged
from matssl.core.errors import DiskFull, UserError
from matssl.core.lineage import Lineage
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.data.crops import Labelled
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable
from matssl.stages import console, resume
from matssl.stages.finetune import augmented, start
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.trained import ensemble

INSTEAD = "start a new run under another --name"


def plan(settings: FinetuneSettings, whole: Labelled, **parts: object) -> dict[str, Any]:
    """Return what a continuation must agree with, as plain values.

    Args:
        settings: of the run.
        whole: images of all trainings.
        parts: what each training has, by the name that :func:`stored` asks for.
    """
    made = {
        **parts,
        "data": whole.identity(),
        "settings": flags.to_dict(settings),
        **augmented.stored(augmented.pipeline(settings, whole)),
    }
    # As it is read again: a tuple would differ from its list.
    return dict(json.loads(json.dumps(made)))


def names(pairs: Sequence[Pair], root: Path) -> list[str]:
    """Return the images of a part, as paths from the data set."""
    return [Path(os.path.relpath(pair.image, root)).as_posix() for pair in pairs]


def check(settings: FinetuneSettings, images: int, table: ClassTable, rt: Runtime) -> None:
    """Refuse a training of so many images that cannot be done, before anything is written.

    Raises:
        UserError: the network does not take its crops, or its batches.
    """
    batch = reading.largest_batch(settings, images, rt.world_size)
    model = start.built(settings, table)
    start.check_batches(replace(settings, batch_size=batch), model, images)


def stored(path: Path, parts: str) -> dict[str, Any]:
    """Return the plan of the run that is to go on.

    Args:
        path: of the plan.
        parts: "folds", "stages" or "seeds".

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = textfiles.read_json(path)
        if not isinstance(found["settings"], Mapping) or not isinstance(found[parts], list):
            raise TypeError("no plan")
        return dict(found)
    except (UserError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, and with it which image is in which of the {parts}; {INSTEAD}"
        ) from error


def as_before(settings: FinetuneSettings, before: Mapping[str, Any]) -> FinetuneSettings:
    """Return the settings with the architecture of the run that goes on where they leave it."""
    old = before.get("settings", {})
    for name in ("encoder", "decoder"):
        if getattr(settings, name) == "auto" and isinstance(old.get(name), str):
            settings = replace(settings, **{name: old[name]})
    return settings


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> None:
    """Refuse to go on with other settings, or another augmentation, than the run was started with.

    Args:
        before: the stored plan.
        now: the plan of this command.
        root: of the run.

    Raises:
        UserError: the sentence names what differs.
    """
    defaults = flags.defaults(FinetuneSettings)
    resume.refuse_other_plan(before["settings"], now["settings"], defaults, INSTEAD)
    augmented.refuse_other(before, now.get(augmented.KEY), root, INSTEAD)


def opened(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    parts: Sequence[str],
    file: str,
    plan: Mapping[str, Any],
    table: ClassTable,
    facts: str,
    argv: Sequence[str],
    tables: Mapping[str, str] = {},
) -> tuple[RunFolder, list[str]]:
    """Return the folder of all trainings, begun where it is new, and the state of each.

    Where it goes on, what a process that was killed had half written is removed.

    Args:
        settings: of the run.
        rt: where it computes.
        root: of the run.
        parts: name of each training's folder.
        file: name of the plan, which is written last.
        plan: from :func:`plan`.
        table: classes.
        facts: what was found of the images, for preflight.txt.
        argv: what the user typed, for command.txt.
        tables: further files by name, which a new folder begins with.
    """
    folder = RunFolder.at(root, settings.resume, settings.overwrite, rt.is_main, marks=(file,))
    states = [resume.state_of(root / name) for name in parts]
    rt.barrier()
    if folder.resumed:
        resume.sweep(folder)
        return folder, states
    folder.start(flags.to_dict(settings), argv)
    folder.write_text("preflight.txt", facts + "\n")
    folder.write_json("classes.json", table.to_dict())
    for name, content in tables.items():
        folder.write_text(name, content)
    folder.write_json(file, plan)
    return folder, states


def take(
    settings: FinetuneSettings,
    rt: Runtime,
    title: str,
    state: str,
    kept: str,
    train: Callable[[FinetuneSettings], object],
) -> None:
    """Take one of several trainings, or what is left of it.

    Args:
        settings: its own.
        rt: where it computes.
        title: what the screen calls it.
        state: "done", "begun" or "new".
        kept: sentence on what stays where it fails.
        train: takes the settings with what is to become of its folder.

    Raises:
        UserError: it failed; how to go on is said.
    """
    told = {"done": "done before, kept", "begun": "goes on", "new": "begins"}[state]
    console.say(settings, rt, f"\n{title}: {told}")
    if state == "done":
        return
    try:
        train(replace(settings, resume=state == "begun", overwrite=state == "new"))
    except (DiskFull, Damaged):
        raise
    except UserError as error:
        raise UserError(
            f"{title} failed: {error}. {kept}: go on with the same command and {settings.again}"
        ) from error


def join(
    path: Path,
    roots: Sequence[Path],
    settings: FinetuneSettings,
    dataset: str,
    link: Mapping[str, object],
) -> None:
    """Write several trainings as one model, whose probabilities are the mean of theirs.

    Args:
        path: of the file.
        roots: run folders of the trainings.
        settings: of the run.
        dataset: name of the folder of its images.
        link: how many there are of what, for the chain of what the model was trained from.

    Raises:
        UserError: the checkpoint of a training cannot be read.
    """
    payloads = [checkpoint.load(root / "best.ckpt", stage="finetune") for root in roots]
    parts = ensemble.joined(payloads)
    steps = [int(payload["step"]) for payload in payloads]
    seen: dict[str, set[str]] = {"train_images": set(), "train_digests": set()}
    for payload in payloads:
        for name, own in seen.items():
            own |= set(payload["progress"][name])
    # Trainings that chose their starts may have begun from several.
    before: list[Mapping[str, object]] = []
    chains = [Lineage.read(payload["lineage"]) for payload in payloads]
    for chain in chains:
        before += [known for known in chain.ancestors.links if known not in before]
    unlabelled = sorted(frozenset().union(*(chain.unlabelled_digests for chain in chains)))
    here: dict[str, object] = {
        "stage": "finetune",
        "dataset": dataset,
        **({"head": settings.head} if settings.classifies else {}),
        **({"encoder": settings.encoder} if settings.sees_encoder else {}),
        "images": len(seen["train_images"]),
        "steps": max(steps),
        **({"unlabelled_digests": unlabelled} if unlabelled else {}),
        **link,
    }
    checkpoint.save(
        path,
        {
            **parts,
            "stage": "finetune",
            "step": max(steps),
            "recipe": flags.to_dict(settings),
            "classes": payloads[0]["classes"],
            "lineage": Lineage(tuple(before)).then(here).stored(),
            "progress": parts["progress"] | {name: sorted(own) for name, own in seen.items()},
        },
    )
