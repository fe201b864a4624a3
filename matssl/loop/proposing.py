"""Predicting, measuring, choosing what to correct, and laying it out for whoever corrects it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core import textfiles
from matssl.core.errors import Incomplete, UserError
from matssl.core.run_folder import atomic_write_bytes, atomic_write_text
from matssl.core.tables import csv_text
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.annotations import FORMATS, Marked, format_name, module_of
from matssl.loop import models
from matssl.loop.context import Context, said
from matssl.loop.first import trainable
from matssl.loop.places import linked, placed, whole
from matssl.loop.settings import LoopSettings
from matssl.loop.state import Round
from matssl.stages import failures
from matssl.stages.measure import settings as measure_settings
from matssl.stages.measure.loop import measure as measure_masks
from matssl.stages.select import settings as select_settings
from matssl.stages.select.loop import select as select_images

AUTO = "auto"
README = "README.txt"
SCORED = "ranked.csv"


def check(given: LoopSettings) -> None:
    """Refuse a method or a format that there is not, before anything is written.

    Raises:
        UserError: there is no such method or format.
    """
    if given.format is not None:
        writing = [name for name in FORMATS if hasattr(module_of(name), "write")]
        if format_name(given.format) not in writing:
            raise UserError(f"--format must be one of {', '.join(writing)}, not {given.format}")
    if given.method != AUTO:
        select_settings.resolve(["model", "pool", "--method", given.method])


def pool(ctx: Context) -> list[str]:
    """Return the pictures that can be predicted and have no mask of a person, in order."""
    state, root = ctx.state, ctx.places.root
    frozen = {label.name for part in state.frozen.values() for label in part}
    return [
        name
        for name, picture in state.pictures.items()
        if name not in state.labels
        and name not in frozen
        and name not in state.broken
        and state.looked.get(name) == picture.digest
        and (root / name).is_file()
    ]


def predict(ctx: Context) -> bool:
    """Predict the pictures that the best model has not predicted yet; return whether any were."""
    best = ctx.state.best
    if best is None:
        return False
    done = ctx.state.predicted(best)
    names = [name for name in pool(ctx) if name not in done]
    if not names:
        return False
    number = len(ctx.state.predictions.get(best, ())) + 1
    run = f"predict_{best}_{number}"
    keys = {ctx.state.pictures[name].key: name for name in names}
    failed: dict[str, str] = {}
    try:
        root = models.evaluated(ctx, run, best, ctx.pictures_set(run, names))
        told = textfiles.read_json(root / "metrics.json").get("failed", {})
        failed = {keys[Path(p).stem]: ctx.places.plain(str(why)) for p, why in told.items()}
    except UserError:
        # Not one of them could be; anything else concerns the command and no picture.
        table = ctx.places.evaluation(run) / failures.TABLE
        if not table.is_file():
            raise
        rows = textfiles.read_rows(table)
        failed = {keys[Path(r["image"]).stem]: ctx.places.plain(r["reason"]) for r in rows}
    digests = {name: ctx.state.pictures[name].digest for name in names}
    ctx.write("predict", model=best, run=run, pictures=digests, failed=failed)
    ctx.say(f"predict   {counted(len(names) - len(failed), 'picture')} by model {best}")
    for name, why in failed.items():
        ctx.warn(f"{name} was not predicted: {why}")
    return True


def measure(ctx: Context) -> bool:
    """Measure all that the best model has predicted, where that has grown; return whether it was.

    Pictures with a mask of a person are left to whoever measures those.
    """
    best = ctx.state.best
    batches = ctx.state.predictions.get(best or "", [])
    run = f"measure_{best}_{len(batches)}"
    if best is None or not batches or run in ctx.state.measured:
        return False
    folder = _joined(ctx, best)
    shutil.rmtree(ctx.places.home / "measure" / run, ignore_errors=True)
    facts: dict[str, Any] = {"model": best, "run": run}
    if folder is None:
        facts["problem"] = "no picture was predicted"
    else:
        words = [str(folder), "--name", run, "--output_dir", str(ctx.places.home), "--quiet"]
        settings = measure_settings.resolve(words)
        try:
            ctx.run(lambda: measure_masks(settings, words))
        except Incomplete as error:
            facts["problem"] = ctx.places.plain(str(error))
        except UserError as error:
            facts["problem"] = ctx.places.plain(said(error))
    table = ctx.places.home / "measure" / run / "measure.json"
    if table.is_file():
        found = textfiles.read_json(table).get("fractions", {})
        facts["fractions"] = found.get("over_specimens") or found.get("specimens") or []
    ctx.write("measure", **facts)
    ctx.say(f"measure   {ctx.places.name(table.parent)}")
    if "problem" in facts:
        ctx.warn(f"measuring: {facts['problem']}")
    return True


def _joined(ctx: Context, model: str) -> Path | None:
    """Return all predictions of a model of pictures without another mask, as one run's results."""
    folder = ctx.places.home / "predictions" / model
    temporary, rows, classes = whole(folder), [], None
    wanted = set(pool(ctx))
    for name, facts in ctx.state.predicted(model).items():
        if name in facts["failed"] or name not in wanted:
            continue
        root, key = ctx.places.evaluation(facts["run"]), ctx.state.pictures[name].key
        linked(ctx.places.mask(facts["run"], key), temporary / "masks" / "index" / f"{key}.png")
        classes = classes or textfiles.read_json(root / "metrics.json")["classes"]
        rows += [
            row
            for row in textfiles.read_rows(root / "per_image.csv")
            if Path(row["image"]).stem == key
        ]
    if not rows:
        shutil.rmtree(temporary)
        return None
    columns = ("image", "group", "pixel_size_nm")
    table = csv_text([{c: row.get(c, "") for c in columns} for row in rows], columns)
    (temporary / "per_image.csv").write_text(table, encoding="utf-8")
    (temporary / "metrics.json").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    placed(temporary, folder)
    return folder


def select(ctx: Context) -> bool:
    """Choose what to correct next, where nothing is asked for; return whether something was."""
    state, best = ctx.state, ctx.state.best
    if best is None or state.waiting:
        return False
    done, held = state.predicted(best), ctx.held_out()
    names = [
        name
        for name in pool(ctx)
        if name in done and name not in done[name]["failed"] and name not in held
    ]
    if not names:
        return False
    number, tried = len(state.rounds) + 1, (best, *names)
    if tried in ctx.barren:
        return False
    chosen = choose(ctx, number, best, names)
    if not chosen:
        ctx.barren.add(tried)
        return False
    rows = [
        {"name": name, "priority": priority, "run": done[name]["run"]} for name, priority in chosen
    ]
    ctx.write("select", round=number, model=best, method=ctx.settings.method, pictures=rows)
    ctx.say(
        f"select    round {number}: {counted(len(rows), 'picture')} of {len(names)} to correct in "
        f"{ctx.places.name(ctx.places.round(number))}"
    )
    return True


def choose(
    ctx: Context, number: int, model: str, names: Sequence[str]
) -> list[tuple[str, float | None]]:
    """Return the pictures to correct, the most wanted first, each with its priority.

    Args:
        ctx: of the loop.
        number: of the round.
        model: that is unsure of them.
        names: of the pictures to choose from.
    """
    given = ctx.settings
    keys = {ctx.state.pictures[name].key: name for name in names}
    if len(names) <= given.n:
        return [(name, None) for name in names]
    source = f"round_{number:03d}"
    parts = {"train": trainable(ctx), "val": ctx.state.frozen.get("validation", ())}
    parts["test"] = ctx.state.frozen.get("test", ())
    labelled = {split: labels for split, labels in parts.items() if labels}
    words = [str(ctx.places.model(model)), str(ctx.pictures_set(source, names))]
    if labelled:
        shutil.rmtree(ctx.places.home / "data" / f"known_{number:03d}", ignore_errors=True)
        words += ["--labelled", str(ctx.data_set(f"known_{number:03d}", labelled))]
    words += ["--n", str(given.n), "--seed", str((given.seed + number) % (1 << 32)), "--quiet"]
    words += [] if given.method == AUTO else ["--method", given.method]
    words += ["--output_dir", str(ctx.places.home), "--name", "choice"]
    words += [*ctx.image_words(), *ctx.device_words()]
    home = ctx.places.home / "select" / source
    shutil.rmtree(home, ignore_errors=True)
    settings = select_settings.resolve(words)
    try:
        ctx.run(lambda: select_images(settings, words))
    except Incomplete:
        # The others were chosen from.
        pass
    except UserError as error:
        # All of them show what is labelled, as copies do.
        ctx.warn(f"nothing to correct was chosen: {said(error)}")
        return []
    rows = textfiles.read_rows(home / "choice" / SCORED)
    return [
        (keys[Path(row["image"]).stem], float(row["priority"]) if row["priority"] else None)
        for row in rows
        if row["chosen"] == "yes"
    ]


def lay_out(ctx: Context) -> None:
    """Write the files of the last round that are not there yet; what a person changed stays."""
    if not ctx.state.rounds:
        return
    last = ctx.state.rounds[-1]
    folder = ctx.places.round(last.number)
    if (folder / README).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name in last.names:
        picture = ctx.state.pictures[name]
        path = ctx.places.mask(last.masks[name], picture.key)
        classes = np.asarray(readers.read_mask(path)).astype(np.uint8)
        mask, image = folder / "masks" / f"{picture.key}.png", folder / "images" / Path(name).name
        image = image.with_name(f"{picture.key}{Path(name).suffix}")
        mask.parent.mkdir(exist_ok=True)
        if not mask.exists():
            atomic_write_bytes(mask, ctx.classes.encode(classes, shown=True))
        if not image.exists() and not image.is_symlink():
            linked(ctx.places.root / name, image)
        drawn.append(Marked(f"{picture.key}{Path(name).suffix}", classes, image))
    if ctx.settings.format is not None:
        names, form = dict(enumerate(ctx.classes.names)), format_name(ctx.settings.format)
        # The first class is what nothing is drawn on.
        del names[0]
        place = folder / form
        temporary = whole(place)
        module: Any = module_of(form)
        module.write(temporary, drawn, names)
        placed(temporary, place)
    (folder / "classes.yaml").write_text(ctx.classes.text, encoding="utf-8")
    atomic_write_text(folder / README, _readme(ctx, last))


def _readme(ctx: Context, last: Round) -> str:
    """Return what to do with the files of a round."""
    table = ctx.classes.table
    values = "\n".join(f"  {c.values[0]}  {c.name}" for c in table.classes)
    listed = "\n".join(f"  {name}" for name in last.names)
    corrected, drawn = ctx.places.corrected.name, ""
    if ctx.settings.format is not None:
        form = format_name(ctx.settings.format)
        drawn = (
            f"Or open the files in {form} with that program and save them to {corrected}, too.\n"
            f"The first class, {ctx.classes.names[0]}, is what nothing is drawn on: the file of a "
            "picture on\nwhich nothing is to be drawn comes back without a shape.\n"
            "Save one file for each picture: its mask or its annotations.\n\n"
        )
    return (
        f"Round {last.number}: masks that model {last.model} predicted, to be corrected.\n\n"
        f"The most wanted first:\n{listed}\n\n"
        "Correct the files in masks (or draw anew) and save them, under the same names, to the\n"
        f"folder {corrected} beside {ctx.places.round(1).parent.name}. What stays "
        f"here is not read.\n\n{drawn}"
        f"Values of the masks:\n{values}\n  {table.ignore_values[0]}  not labelled: counts for "
        "nothing\n"
    )


def shares(facts: Mapping[str, Any]) -> str:
    """Return the area fractions of a measurement in words, "" where there are none."""
    told = []
    for row in facts.get("fractions") or ():
        value = next((v for k, v in row.items() if str(k).startswith("area fraction")), None)
        if isinstance(value, (int, float)):
            told.append(f"{row.get('class')} {value:.1f} %")
    return ", ".join(told)
