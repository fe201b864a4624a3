"""Semi-supervised learning of a run: what it begins with, its table, what its report says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matssl import report
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.core.tables import percent
from matssl.data.crops import CropAugmentation
from matssl.data.unlabelled import UnlabelledLoader, check_pairs
from matssl.pictures import semi as pictures
from matssl.stages import console
from matssl.stages.finetune.semi import SEMI
from matssl.stages.finetune.semi import pool as pools
from matssl.stages.finetune.semi.supervision import Plan, Supervision
from matssl.stages.finetune.semi.thresholds import labelled_shares, thresholds
from matssl.stages.finetune.semi_settings import NONE
from matssl.stages.finetune.settings import FinetuneSettings

if TYPE_CHECKING:
    from matssl.stages.finetune.inputs import Inputs

# What a run folder holds of it.
TABLE, PLOT = "semi.csv", "semi.png"
# A strong view of usual strength. Colours have no place in it: micrographs are grey.
GAMMA, CONTRAST, BRIGHTNESS, LIGHT = 0.5, 0.5, 0.3, 0.2
BLUR_P, NOISE_P = 0.5, 0.5


def gathered(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs, facts: str
) -> tuple[Inputs, str]:
    """Return the images of a run with those that have no labels, and what was found of all.

    Inputs that have them already, of several trainings, are returned as they are.

    Args:
        settings: of the run.
        rt: where it computes.
        inputs: its labelled images.
        facts: what was found of them.

    Raises:
        UserError: see :func:`matssl.stages.finetune.semi.pool.gathered`, or an odd batch.
    """
    if settings.semi == NONE or inputs.unlabelled is not None:
        return inputs, facts
    check_pairs(batch(settings, rt.world_size), rt.world_size)
    val = inputs.val.pairs if inputs.val is not None else ()
    found = pools.gathered(settings, rt, inputs.dataset, val, inputs.record)
    if found is None:
        return inputs, facts
    return replace(inputs, unlabelled=found), f"{facts}\n\nwithout labels: {found.facts}"


def strong_crops(crops: CropAugmentation, strength: float) -> CropAugmentation:
    """Return how far a strong view is changed.

    Args:
        crops: of the labelled images, whose size and orientations count here, too.
        strength: 1 for the usual one.
    """
    share = min(strength, 1.0)
    return CropAugmentation(
        size=crops.size,
        d4="full" if crops.pipeline is not None else crops.d4,
        gamma=GAMMA * strength,
        contrast=CONTRAST * strength,
        brightness=BRIGHTNESS * strength,
        illumination=LIGHT * strength,
        blur_p=BLUR_P * share,
        noise_p=NOISE_P * share,
    )


def batch(settings: FinetuneSettings, world_size: int) -> int:
    """Return the crops without labels in a step: as many as labelled ones, in pairs of partners."""
    if settings.unlabeled_batch is not None:
        return settings.unlabeled_batch
    return settings.batch_size + -settings.batch_size % (2 * world_size)


def supervision(
    settings: FinetuneSettings,
    rt: Runtime,
    inputs: Inputs,
    crops: CropAugmentation,
    total_steps: int,
) -> Supervision | None:
    """Return what a run learns from pictures without labels; None where it does not.

    Args:
        settings: of the run.
        rt: where it computes.
        inputs: its images.
        crops: how labelled ones are drawn.
        total_steps: of the run.

    Raises:
        UserError: the processes cannot share a batch.
    """
    if settings.semi == NONE or inputs.unlabelled is None:
        return None
    method = SEMI[settings.semi]
    shares = labelled_shares(inputs.train.masks, inputs.table.num_classes)
    ramp, mixed = settings.semi_ramp, settings.cutmix_p
    plan = Plan(
        total_steps=total_steps,
        warmup=settings.semi_warmup,
        ramp=method.ramp if ramp is None else ramp,
        weight=method.weight * settings.semi_weight,
        guard=settings.guard,
        thresholds=thresholds(shares, settings.common_threshold, settings.rare_threshold),
        shares=tuple(shares.tolist()),
        validated=inputs.val is not None,
    )
    loader = UnlabelledLoader(
        inputs.unlabelled.pool,
        inputs.record,
        strong_crops(crops, settings.strong_views),
        batch(settings, rt.world_size),
        settings.seed,
        method.views,
        method.cutmix_p if mixed is None else mixed,
        rt.workers,
        rt.rank,
        rt.world_size,
    )
    made = Supervision(method, plan, loader, rt)
    passes = loader.batch_size * (method.views + 2 * method.dropped)
    console.say(
        settings,
        rt,
        f"semi    {settings.semi} from step {made.plan.start} at the latest; a step then takes "
        f"{loader.batch_size + settings.batch_size + passes} crops through the network instead of "
        f"{settings.batch_size}",
    )
    return made


def columns(made: Supervision | None) -> dict[str, float]:
    """Return what a step adds to steps.csv."""
    if made is None:
        return {}
    return {"unlabelled_loss": made.loss, "unlabelled_weight": made.rate}


def looked_at(
    folder: RunFolder, made: Supervision | None, names: Sequence[str], step: int, miou: float
) -> list[str]:
    """Write a row of semi.csv, and return what is to be said.

    Args:
        folder: of the run.
        made: what it learns without labels, None for nothing.
        names: of the classes.
        step: steps taken.
        miou: of the validation images; NaN without any.
    """
    if made is None:
        return []
    stopped = made.stopped
    row, note = made.looked_at(step, miou)
    for c, name in enumerate(names):
        for kind in ("believed", "said"):
            row[f"{kind} {name}"] = row.pop(f"{kind} {c}")
        row[f"labelled {name}"] = made.plan.shares[c]
    folder.append_csv(TABLE, row)
    notes = [note] if note else []
    if row["state"] != "warm-up" and stopped is None:
        kinds = {kind: _shares(row, kind, names) for kind in ("said", "believed")}
        notes.append(
            f"without labels the teacher says {kinds['said']} %; {_percent(row['accepted'])} % of "
            f"the pixels are believed ({kinds['believed']} %)"
        )
    if made.stopped is not None and stopped is None:
        notes.append(_stop_told(made, names))
    return notes


def _stop_told(made: Supervision, names: Sequence[str]) -> str:
    fallen = ", ".join(names[c] for c in made.fallen)
    return (
        f"pictures without labels count no more from step {made.stopped} on: the teacher finds "
        f"{fallen} in less than {made.plan.guard:g} times its share of the labelled pixels "
        "(--guard), so that it is being lost or rarer in these pictures; the run goes on with "
        "labels alone"
    )


def _shares(row: Mapping[str, object], kind: str, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {_percent(row[f'{kind} {name}'])}" for name in names)


def _percent(value: object) -> str:
    return "none" if not isinstance(value, float) or math.isnan(value) else percent(value)


def stored(made: Supervision | None, inputs: Inputs) -> dict[str, object]:
    """Return what a checkpoint keeps, nothing where labels alone are learned from."""
    if made is None or inputs.unlabelled is None:
        return {}
    return {"semi": made.stored(), "unlabelled": inputs.unlabelled.stored()}


def link(inputs: Inputs) -> dict[str, object]:
    """Return what the chain of a model's trainings keeps of pictures without labels.

    Models that go on from this one, and ensembles of it, tell an evaluation of them, too.
    """
    found = inputs.unlabelled
    if found is None:
        return {}
    return {"unlabelled_images": len(found.pool), "unlabelled_digests": list(found.digests)}


def restore(
    made: Supervision | None, inputs: Inputs, facts: Mapping[str, Any], instead: str
) -> None:
    """Go on from what :func:`stored` returned.

    Args:
        made: what the run learns without labels, None for nothing.
        inputs: its images.
        facts: the progress of a checkpoint.
        instead: what to do for another plan.

    Raises:
        UserError: the pictures changed.
        KeyError, TypeError, ValueError: the checkpoint has no such record.
    """
    if made is None or inputs.unlabelled is None:
        return
    pools.refuse_other(inputs.unlabelled, facts["unlabelled"], instead)
    made.restore(facts["semi"])


def section(root: Path, inputs: Inputs, made: Supervision | None) -> list[tuple[str, str]]:
    """Return the part of a report on pictures without labels, nothing where there were none.

    Args:
        root: of the run.
        inputs: its images.
        made: what it learned without labels.
    """
    if made is None or inputs.unlabelled is None:
        return []
    names, method = inputs.table.names, made.method
    said = [f"{inputs.unlabelled.text}."]
    if made.begun is None:
        said.append("The run ended before they counted.")
    else:
        until = "the end" if made.stopped is None else f"step {made.stopped}"
        said.append(f"They counted from step {made.begun} to {until}.")
    if made.stopped is not None:
        said.append(f"{_stop_told(made, names)}.")
    rows = []
    for c, name in enumerate(names):
        row: dict[str, object] = {
            "class": name,
            "share of the labelled pixels in %": 100 * made.plan.shares[c],
        }
        if method.thresholded:
            row["believed from a probability of"] = made.plan.thresholds[c]
        rows.append(row)
    body = report.note(" ".join(said)) + report.table(rows)
    if (root / TABLE).is_file():
        pictures.believed(root / TABLE, names, root / PLOT)
        body += report.picture(root / PLOT) if (root / PLOT).is_file() else ""
    return [("Pictures without labels", body)]
