"""What a fine-tuning says and leaves behind: its plan, panels, published names, report.html."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import checkpoint, run_folder
from matssl.core.arrays import Array
from matssl.core.run_folder import RunFolder
from matssl.data import preprocess
from matssl.metrics import counts as counting
from matssl.metrics import overlap
from matssl.pictures import segmentation, training
from matssl.stages.finetune import augmented, averaging, calibrate, deciding
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Averaged, Learner
from matssl.stages.finetune.semi import watch
from matssl.stages.finetune.settings import FinetuneSettings

# Validation images shown in the report.
SHOWN_PANELS = 3


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        step: the last one taken.
        stop_at: the last one of the plan.
        best: mIoU of the kept model, or of the folds; below 0 where nothing was scored.
        best_step: of the kept model.
        start: in words, where the weights come from.
        compared: how that start does beside others at hand, "" where it was not looked at.
    """

    step: int
    stop_at: int
    best: float
    best_step: int
    start: str
    compared: str = ""

    @property
    def facts(self) -> dict[str, object]:
        """What status.json says of it beside the steps."""
        told = {"start": self.compared} if self.compared else {}
        return {"best_miou": self.best, "best_step": self.best_step, **told}

    @property
    def score(self) -> str:
        """The best mIoU for people."""
        return f"{100 * self.best:.1f} %" if self.best >= 0 else "none"


def description(settings: FinetuneSettings, inputs: Inputs, total_steps: int, step: int) -> str:
    """Return what is about to happen, for the console."""
    val = len(inputs.val.planes) if inputs.val else 0
    resumed = f", resumed at step {step}" if step else ""
    return (
        f"images  {len(inputs.train.planes)} to train, {val} to validate\n"
        f"model   {settings.decoder} on {settings.encoder}, {inputs.table.num_classes} classes, "
        f"{total_steps} steps of {settings.batch_size} crops of {settings.crop_size} px{resumed}"
    )


def notes(settings: FinetuneSettings, inputs: Inputs, crop_size: int) -> list[str]:
    """Return what is to be said before the first step, on images and on flags without effect."""
    found = (
        mirroring(inputs, crop_size),
        augmented.told(inputs.pipeline),
        averaging.told(settings, inputs),
        deciding.unheeded(settings, inputs),
    )
    return [note for note in found if note]


def mirroring(inputs: Inputs, crop_size: int) -> str:
    """Return a note where an image is smaller than a crop; else nothing."""
    smallest = min(min(mask.shape) for mask in inputs.train.masks)
    if smallest >= crop_size:
        return ""
    return f"note    the smallest image has {smallest} px; crops are filled up by mirroring"


def finish(
    settings: FinetuneSettings,
    folder: RunFolder,
    inputs: Inputs,
    learner: Learner,
    outcome: Outcome,
    more: Sequence[tuple[str, str]] = (),
    weights: str = "best.ckpt",
    predict: Callable[[Array], NDArray[np.uint8]] | None = None,
) -> None:
    """Write the last pictures and the report.

    Args:
        settings: of the run.
        folder: of the run.
        inputs: its images.
        learner: predicts the panels with the kept weights.
        outcome: what the run came to.
        more: parts of the report.
        weights: file in the folder with those of the network, where it is not the kept model alone.
        predict: plane to class indices (H, W) by the kept model; None: by the network alone.
    """
    root = folder.root
    if (root / "steps.csv").exists() and (root / "log.csv").exists():
        training.finetuning_curves(root / "steps.csv", root / "log.csv", folder.path("curves.png"))
    published_names(settings, folder, len(inputs.train.planes), outcome)
    pictures = panels(folder, inputs, learner, weights, predict)
    kind = "validation mIoU" if inputs.val else "held-out mIoU of the folds"
    if outcome.best < 0:
        kind = "validation"
    figures = [
        (outcome.score, kind),
        (str(len(inputs.train.planes)), "labelled images"),
        (str(outcome.best_step), "steps of the kept model"),
    ]
    rows = [
        {"class": c.name, "share of the labelled pixels in %": 100 * c.share}
        for c in inputs.table.classes
    ]
    colours = segmentation.colour_names(inputs.table.names)
    beside = report.note(f"Start: {outcome.compared}.") if outcome.compared else ""
    epochs = settings.results_dir is not None and (root / "metrics.png").is_file()
    sections = [
        ("", report.headline(figures) + beside),
        ("Course of the training", report.picture(root / "curves.png")),
        *([("Epochs", report.picture(root / "metrics.png"))] if epochs else []),
        ("Validation images", "".join(report.picture(path) for path in pictures)),
        *calibrate.section(root),
        *deciding.section(root),
        *more,
        *augmented.section(root, settings),
        *watch.section(root, inputs, learner.supervision),
        ("Classes", report.table(rows, swatches=colours)),
        ("Start", report.text(outcome.start)),
        ("Data", report.text(run_folder.read_text(root / "preflight.txt"))),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
        ("Settings", report.text(run_folder.read_text(root / "config.yaml"))),
    ]
    subtitle = f"{settings.decoder} on {settings.encoder}, {inputs.dataset.root.name}"
    report.write(root / "report.html", f"Fine-tuning: {root.name}", subtitle, sections)
    # Last of all: a run of several trainings takes none up again that is called done.
    folder.status("done", step=outcome.step, total=outcome.stop_at, **outcome.facts)
    said = deciding.told(root)
    print(
        f"done: {root / 'best.ckpt'}\n      {kind} {outcome.score} at step "
        f"{outcome.best_step}\n      report: {root / 'report.html'}",
        *([f"\n      decision: {said}"] if said else []),
        sep="",
        flush=True,
    )


def published_names(
    settings: FinetuneSettings, folder: RunFolder, images: int, outcome: Outcome
) -> None:
    """Write the files of the MatSSL code that scripts may look for: best model, mIoU curve.

    Args:
        settings: of the run.
        folder: of the run.
        images: how many it trains on.
        outcome: what the run came to.
    """
    if not (folder.root / "best.ckpt").is_file():
        return
    if settings.ssl_weights_path:
        start = "ssl"
    else:
        start = {"none": "random", "imagenet": "imagenet"}.get(settings.weights, "file")
    batches = max(1, round(images / settings.batch_size))
    epoch = max(0, -(-outcome.best_step // batches) - 1)
    stem = f"{settings.decoder}_best_{start}_finetuned"
    name = f"{stem}_{max(outcome.best, 0):.4f}_epoch{epoch}.pth"
    folder.alias("best.ckpt", name, f"{stem}_*.pth")
    log = folder.root / "log.csv"
    if log.exists():
        table = training.read_table(log)
        np.save(folder.path("mean_iou_values.npy"), table["val_miou"])
        path = folder.path("mean_iou_over_epochs.png")
        training.miou_curve(table["step"] / batches, table["val_miou"], path)


def panels(
    folder: RunFolder,
    inputs: Inputs,
    learner: Learner,
    weights: str = "best.ckpt",
    predict: Callable[[Array], NDArray[np.uint8]] | None = None,
) -> list[Path]:
    """Write panels of the first validation images (training images where there are none).

    Args:
        folder: of the run.
        inputs: the images.
        learner: whose model gets the weights for the time.
        weights: file in the folder that has them.
        predict: plane to class indices (H, W), with them; None: by the learner.
    """
    best = folder.root / weights
    if not best.is_file():
        return []
    kept = checkpoint.load(best, stage="finetune")["state"]
    with Averaged(learner.model, kept):
        learner.model.eval()
        return drawn(folder, inputs, predict or learner.predict)


def drawn(
    folder: RunFolder, inputs: Inputs, predict: Callable[[Array], NDArray[np.uint8]]
) -> list[Path]:
    """Write panels of the first validation images (training images where there are none).

    Args:
        folder: of the run.
        inputs: the images.
        predict: plane to class indices (H, W).
    """
    data, table = inputs.val or inputs.train, inputs.table
    paths = []
    for number in range(min(SHOWN_PANELS, len(data.planes))):
        plane, mask = data.planes[number], data.masks[number]
        prediction = predict(plane)
        counts = counting.confusion(mask, prediction, table.num_classes)
        path = folder.path(f"validation/{number + 1}.png")
        title = f"{data.pairs[number].image.name}: mIoU {100 * overlap.miou(counts):.1f} %"
        image = preprocess.quantise(inputs.record.shown(plane))
        nm = data.facts[number][1]
        segmentation.panel(image, mask, prediction, table.names, path, title, nm)
        paths.append(path)
    return paths
