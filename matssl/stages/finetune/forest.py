"""A random forest on filters of the picture in the place of a network: ``--head forest``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl import report as page
from matssl.core import checkpoint, flags, run_folder
from matssl.core.arrays import Array
from matssl.core.lineage import Lineage
from matssl.core.run_folder import RunFolder
from matssl.core.runtime import Runtime
from matssl.core.wording import counted
from matssl.data import specimens
from matssl.data.crops import Labelled
from matssl.forest import filters, growing
from matssl.forest.growing import Grown
from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.models.forest import ForestModel
from matssl.pictures import segmentation
from matssl.stages import console, resume
from matssl.stages.finetune import calibrate, folds, report
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.forest_settings import scales
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings

# Filters that the report lists, the most telling first.
SHOWN_FILTERS = 8
# Bytes of predictions that are kept for the next use.
REMEMBERED = 1 << 29
START = "a random forest on filters of the picture: no network, no weights"


def trained(
    settings: FinetuneSettings,
    rt: Runtime,
    root: Path,
    inputs: Inputs,
    facts: str,
    argv: Sequence[str],
) -> Path:
    """Grow a forest, score it on the validation images and return its run folder.

    Where too few images are labelled to set some aside, the score is the mean over held-out parts
    of the labelled images; the forest that is kept has learned from all of them.

    Args:
        settings: of train_finetune.py.
        rt: threads; one process works.
        root: of the run.
        inputs: its images.
        facts: what was found of them, for preflight.txt.
        argv: what the user typed, for command.txt.
    """
    if not rt.is_main:
        return root
    for note in _notes(settings):
        console.say(settings, rt, f"note    {note}")
    val = len(inputs.val.planes) if inputs.val else 0
    folder = RunFolder.at(root, False, settings.overwrite, rt.is_main)
    folder.start(flags.to_dict(settings), argv)
    console.say(
        settings,
        rt,
        f"images  {len(inputs.train.planes)} to train, {val} to validate\n"
        f"model   random forest of {counted(settings.trees, 'tree')} on "
        f"{len(filters.names(scales(settings.filters), inputs.record.channels))} filters of "
        f"{settings.filters} px, {inputs.table.num_classes} classes\nfolder  {folder.root}",
    )
    try:
        with resume.disk_errors(folder):
            folder.write_text("preflight.txt", facts + "\n")
            folder.write_json("classes.json", inputs.table.to_dict())
            reading.describe(folder, inputs)
            _train(settings, rt, folder, inputs)
    except BaseException as error:
        resume.note_end(folder, 0, error)
        raise
    return folder.root


def _notes(settings: FinetuneSettings) -> list[str]:
    unheeded = settings.unheeded()
    if not unheeded:
        return []
    return [f"without effect on a forest, which is no network: {', '.join(unheeded)}"]


def _train(settings: FinetuneSettings, rt: Runtime, folder: RunFolder, inputs: Inputs) -> None:
    start = time.perf_counter()
    grown = _grown(settings, rt, inputs, inputs.train)
    seconds = time.perf_counter() - start
    console.say(
        settings,
        rt,
        f"grown in {seconds:.1f} s from {counted(sum(grown.pixels), 'pixel')} ("
        + ", ".join(f"{n} {c}" for n, c in zip(inputs.table.names, grown.pixels, strict=True))
        + ")",
    )
    predictor = Predictor(inputs, grown)
    each = _scores(settings, rt, inputs, predictor)
    best = float(np.nanmean([overlap.miou(c) for c in each])) if each else -1.0
    best = best if np.isfinite(best) else -1.0
    pixels = sum(mask.size for mask in (inputs.val.masks if inputs.val else ()))
    row: dict[str, object] = {"step": settings.trees, "seconds": seconds}
    if best >= 0:
        iou = overlap.iou(np.sum(each, axis=0))
        row["val_miou"] = best
        row |= {f"iou {n}": float(v) for n, v in zip(inputs.table.names, iou, strict=True)}
        classes = ", ".join(
            f"{n} {100 * v:.1f}" for n, v in zip(inputs.table.names, iou.tolist(), strict=True)
        )
        kind = "validation" if pixels else f"held-out, {counted(len(each), 'fold')}:"
        console.say(settings, rt, f"{kind} mIoU {100 * best:.1f} ({classes})")
    folder.append_csv("log.csv", row)
    payload = _payload(settings, inputs, predictor.model, best)
    checkpoint.save(folder.path("best.ckpt"), payload)
    if inputs.val is not None:
        calibrate.fit(folder, payload, inputs.val, predictor.probabilities)
    _finish(settings, folder, inputs, predictor, grown, best)


def _grown(settings: FinetuneSettings, rt: Runtime, inputs: Inputs, data: Labelled) -> Grown:
    return growing.grow(
        data.planes,
        data.masks,
        inputs.table.num_classes,
        sigmas=scales(settings.filters),
        trees=settings.trees,
        samples=settings.samples,
        least=settings.leaf_pixels,
        seed=settings.seed,
        jobs=rt.threads,
        tensor=inputs.record.tensor,
    )


class Predictor:
    """What a forest says of the images of a run; of some at once it remembers it."""

    def __init__(self, inputs: Inputs, grown: Grown) -> None:
        self.model, self.record = ForestModel(grown.forest), inputs.record
        self.known: dict[int, Array] = {}

    def probabilities(self, plane: Array) -> Array:
        """Return class probabilities of a plane, float32 (C, H, W), a copy of its own."""
        found = self.known.get(id(plane))
        if found is None:
            found = self.model.probabilities(self.record.tensor(plane))
            if sum(other.nbytes for other in self.known.values()) < REMEMBERED:
                self.known[id(plane)] = found
        return found.copy()

    def classes(self, plane: Array) -> NDArray[np.uint8]:
        """Return class indices of a plane, uint8 (H, W)."""
        return self.probabilities(plane).argmax(axis=0).astype(np.uint8)

    def confusion(self, data: Labelled) -> NDArray[np.int64]:
        """Return the pooled confusion matrix of labelled images."""
        count = self.model.forest.num_classes
        total = np.zeros((count, count), np.int64)
        for plane, mask in zip(data.planes, data.masks, strict=True):
            total += counting.confusion(mask, self.classes(plane), count)
        return total


def _scores(
    settings: FinetuneSettings, rt: Runtime, inputs: Inputs, predictor: Predictor
) -> list[NDArray[np.int64]]:
    """Return the confusion matrix of the validation images, or of each held-out part."""
    if inputs.val is not None:
        return [predictor.confusion(inputs.val)]
    few = len(inputs.train.planes) < specimens.MIN_IMAGES_TO_SPLIT
    if not few or settings.val_fraction == 0:
        return []
    return [
        Predictor(inputs, _grown(settings, rt, inputs, train)).confusion(held)
        for train, held in folds.parts(inputs.train)
    ]


def _payload(
    settings: FinetuneSettings, inputs: Inputs, model: ForestModel, best: float
) -> dict[str, Any]:
    """Return the content of best.ckpt."""
    link: dict[str, object] = {
        "stage": "finetune",
        "dataset": inputs.dataset.root.name,
        "head": settings.head,
        "images": len(inputs.train.planes),
        "trees": settings.trees,
    }
    return {
        "stage": "finetune",
        "model": model.description,
        "state": dict(model.state_dict()),
        "step": settings.trees,
        "recipe": flags.to_dict(settings),
        "preprocess": inputs.record.to_dict(),
        "classes": inputs.table.to_dict(),
        "lineage": Lineage().then(link).stored(),
        "progress": {
            "best": best,
            "start": START,
            "train_images": [str(pair.image) for pair in inputs.train.pairs],
            "train_digests": list(inputs.train.digests),
            "data": inputs.identity,
        },
    }


def _finish(
    settings: FinetuneSettings,
    folder: RunFolder,
    inputs: Inputs,
    predictor: Predictor,
    grown: Grown,
    best: float,
) -> None:
    """Write the panels and the report, and say where they lie."""
    root = folder.root
    paths = report.drawn(folder, inputs, predictor.classes)
    folder.status("done", step=settings.trees, total=settings.trees, best_miou=best)
    kind = "validation mIoU" if inputs.val else "mIoU of held-out parts"
    score = f"{100 * best:.1f} %" if best >= 0 else "none"
    figures = [
        (score, kind if best >= 0 else "validation"),
        (str(len(inputs.train.planes)), "labelled images"),
        (str(sum(grown.pixels)), "pixels learned from"),
        (str(settings.trees), "trees"),
    ]
    names = filters.names(grown.forest.sigmas, grown.forest.channels)
    order = np.argsort(-grown.importance, kind="stable")[:SHOWN_FILTERS]
    telling = [
        {"filter": names[i], "share in telling the classes apart in %": 100 * grown.importance[i]}
        for i in order
    ]
    rows = [
        {
            "class": c.name,
            "share of the labelled pixels in %": 100 * c.share,
            "pixels learned from": count,
        }
        for c, count in zip(inputs.table.classes, grown.pixels, strict=True)
    ]
    colours = segmentation.colour_names(inputs.table.names)
    sections = [
        ("", page.headline(figures)),
        ("Validation images", "".join(page.picture(path) for path in paths)),
        *calibrate.section(root),
        ("Classes", page.table(rows, swatches=colours)),
        ("What it looks at", page.table(telling)),
        ("Data", page.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", page.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", page.text(run_folder.read_text(root / "config.yaml"))),
    ]
    subtitle = f"random forest on filters of the picture, {inputs.dataset.root.name}"
    page.write(root / "report.html", f"Forest: {root.name}", subtitle, sections)
    print(
        f"done: {root / 'best.ckpt'}\n      {kind} {score}\n      report: {root / 'report.html'}",
        flush=True,
    )
