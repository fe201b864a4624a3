"""A head on features that stay as they are in the place of a network: ``--head forest``, linear."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl import report as page
from matssl.core import checkpoint, flags, run_folder
from matssl.core.run_folder import RunFolder, disk_errors
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.metrics import overlap
from matssl.models.pixels import FOREST, PixelClassifier
from matssl.pictures import segmentation
from matssl.stages import console, lineage, resume
from matssl.stages.finetune import calibrate, heads, report
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.heads import Head, Learned, Predictor
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings
from matssl.weights import WeightsReport

# Features that the report lists, the most telling first.
SHOWN_FEATURES = 8
NAMES = {"forest": "random forest", "linear": "linear classifier"}


def trained(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    inputs: Inputs,
    facts: str,
    argv: Sequence[str],
) -> Path:
    """Let a head learn, score it on the validation images and return its run folder.

    Where too few images are labelled to set some aside, the score is the mean over held-out parts
    of the labelled images; the head that is kept has learned from all of them.

    Args:
        settings: of train_finetune.py.
        rt: where an encoder computes, and threads; one process works.
        root: of the run.
        inputs: its images.
        facts: what was found of them, for preflight.txt.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: weights of the encoder that cannot be used; nothing is written.
    """
    if not rt.is_main:
        return root
    for note in _notes(settings):
        console.say(settings, rt, f"note    {note}")
    features, started_from = heads.features(settings, rt, inputs)
    head = heads.of_settings(settings, rt, inputs, features, settings.head)
    val = len(inputs.val.planes) if inputs.val else 0
    folder = RunFolder.at(root, False, settings.overwrite, rt.is_main)
    folder.start(flags.to_dict(settings), argv)
    if features.encoder is not None:
        console.say(settings, rt, lineage.origin(started_from, resumed=False))
    console.say(
        settings,
        rt,
        f"images  {len(inputs.train.planes)} to train, {val} to validate\n"
        f"model   {head.text}, {inputs.table.num_classes} classes\nfolder  {folder.root}",
    )
    try:
        with disk_errors(folder):
            folder.write_text("preflight.txt", facts + "\n")
            folder.write_json("classes.json", inputs.table.to_dict())
            reading.describe(folder, inputs)
            _train(settings, rt, folder, inputs, head, started_from)
    except BaseException as error:
        resume.note_end(folder, 0, error)
        raise
    return folder.root


def _notes(settings: FinetuneSettings) -> list[str]:
    unheeded = settings.unheeded()
    if not unheeded:
        return []
    what = f"a {NAMES[settings.head]}, which is no network"
    if not settings.sees_encoder:
        what = f"{what}, on filters of the picture"
    return [f"without effect on {what}: {', '.join(unheeded)}"]


def _train(
    settings: FinetuneSettings,
    rt: Runtime,
    folder: RunFolder,
    inputs: Inputs,
    head: Head,
    started_from: WeightsReport | None,
) -> None:
    learned = head.learned(inputs.train)
    verb = "grown" if head.kind == FOREST else "fitted"
    console.say(
        settings,
        rt,
        f"{verb} in {learned.seconds:.1f} s from {counted(sum(learned.pixels), 'pixel')} ("
        + ", ".join(f"{n} {c}" for n, c in zip(inputs.table.names, learned.pixels, strict=True))
        + ")"
        + (f"; {learned.said}" if learned.said else ""),
    )
    predictor = Predictor(head, learned.model)
    each = heads.scores(head, predictor, inputs, settings.val_fraction > 0)
    best = heads.mean_iou(each)
    pixels = sum(mask.size for mask in (inputs.val.masks if inputs.val else ()))
    row: dict[str, object] = {"step": _steps(settings), "seconds": learned.seconds}
    if best >= 0:
        iou = overlap.iou(np.sum(each, axis=0))
        row["val_miou"] = best
        row |= {f"iou {n}": float(v) for n, v in zip(inputs.table.names, iou, strict=True)}
        classes = ", ".join(
            f"{n} {100 * v:.1f}" if np.isfinite(v) else f"{n} –"
            for n, v in zip(inputs.table.names, iou.tolist(), strict=True)
        )
        said = f"validation mIoU {100 * best:.1f} ({classes})"
        if not pixels:
            # A mean over folds is not that of the classes, which are of all pixels.
            said = f"mean of the mIoU of {counted(len(each), 'fold')} {100 * best:.1f} "
            said += f"(classes, all held-out pixels together: {classes})"
        console.say(settings, rt, said)
    folder.append_csv("log.csv", row)
    content = payload(settings, inputs, learned.model, best, started_from)
    checkpoint.save(folder.path("best.ckpt"), content)
    if inputs.val is not None:
        calibrate.fit(folder, content, inputs.val, predictor.probabilities)
    _finish(settings, folder, inputs, predictor, learned, best, content["progress"]["start"])


def _steps(settings: FinetuneSettings) -> int:
    """Return what stands for steps of training: trees; a linear classifier has one solution."""
    return settings.trees if settings.head == FOREST else 1


def payload(
    settings: FinetuneSettings,
    inputs: Inputs,
    model: PixelClassifier,
    best: float,
    started_from: WeightsReport | None,
) -> dict[str, Any]:
    """Return the content of the checkpoint of a head.

    Args:
        settings: of the run.
        inputs: its images.
        model: what was learned.
        best: its mean IoU; below 0 where there is none.
        started_from: the weights of its encoder; None without one, or where they are random.
    """
    kind = str(model.description["kind"])
    link: dict[str, object] = {
        "stage": "finetune",
        "dataset": inputs.dataset.root.name,
        "head": kind,
        "images": len(inputs.train.planes),
        **({"trees": settings.trees} if kind == FOREST else {}),
    }
    start = f"a {NAMES[kind]} on filters of the picture: no network, no weights"
    if not model.whole:
        link["encoder"] = model.features.name
        filters = " and on filters of the picture" if model.features.sigmas else ""
        start = (
            f"a {NAMES[kind]} on the maps of {model.features.name} as they are{filters}; "
            f"{lineage.origin(started_from, resumed=False)}"
        )
    return {
        "stage": "finetune",
        "model": model.description,
        "state": dict(model.state_dict()),
        "step": settings.trees if kind == FOREST else 1,
        "recipe": flags.to_dict(settings),
        "preprocess": inputs.record.to_dict(),
        "classes": inputs.table.to_dict(),
        "lineage": lineage.ancestors(started_from).then(link).stored(),
        "progress": {
            "best": best,
            "start": start,
            "train_images": [str(pair.image) for pair in inputs.train.pairs],
            "train_digests": list(inputs.train.digests),
            "data": inputs.identity,
        },
    }


def _telling(learned: Learned) -> list[dict[str, object]]:
    """Return rows of the most telling features; the channels of a map count together."""
    shares: dict[str, float] = {}
    for name, share in zip(learned.model.features.groups, learned.importance, strict=True):
        shares[name] = shares.get(name, 0.0) + float(share)
    order = sorted(shares, key=lambda name: -shares[name])[:SHOWN_FEATURES]
    return [
        {"feature": name, "share in telling the classes apart in %": 100 * shares[name]}
        for name in order
    ]


def _finish(
    settings: FinetuneSettings,
    folder: RunFolder,
    inputs: Inputs,
    predictor: Predictor,
    learned: Learned,
    best: float,
    start: str,
) -> None:
    """Write the panels and the report, and say where they lie."""
    root, steps = folder.root, _steps(settings)
    paths = report.drawn(folder, inputs, predictor.classes)
    kind = "validation mIoU" if inputs.val else "mIoU of held-out parts"
    score = f"{100 * best:.1f} %" if best >= 0 else "none"
    figures = [
        (score, kind if best >= 0 else "validation"),
        (str(len(inputs.train.planes)), "labelled images"),
        (str(sum(learned.pixels)), "pixels learned from"),
        *([(str(steps), "trees")] if settings.head == FOREST else []),
    ]
    rows = [
        {
            "class": c.name,
            "share of the labelled pixels in %": 100 * c.share,
            "pixels learned from": count,
        }
        for c, count in zip(inputs.table.classes, learned.pixels, strict=True)
    ]
    colours = segmentation.colour_names(inputs.table.names)
    sections = [
        ("", page.headline(figures)),
        ("Validation images", "".join(page.picture(path) for path in paths)),
        *calibrate.section(root),
        ("Classes", page.table(rows, swatches=colours)),
        ("What it looks at", page.table(_telling(learned))),
        ("Start", page.text(start)),
        ("Data", page.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", page.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", page.text(run_folder.read_text(root / "config.yaml"))),
    ]
    filters = "filters of the picture"
    own = settings.encoder
    on = {"filters": filters, "encoder": own, "both": f"{filters} and {own}"}
    seen = on[settings.seen(settings.started)]
    subtitle = f"{NAMES[settings.head]} on {seen}, {inputs.dataset.root.name}"
    page.write(root / "report.html", f"{settings.head.title()}: {root.name}", subtitle, sections)
    folder.status("done", step=steps, total=steps, best_miou=best)
    print(
        f"done: {root / 'best.ckpt'}\n      {kind} {score}\n      report: {root / 'report.html'}",
        flush=True,
    )
