"""Files of an evaluation as MatSSL and unet-compare write them, for scripts that look for them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl import hub
from matssl.core.errors import UserError
from matssl.core.flags import declared
from matssl.core.run_folder import RunFolder, atomic_write_bytes
from matssl.metrics import calibration, overlap
from matssl.stages import drawing, published
from matssl.stages.evaluate.settings import EvaluateSettings
from matssl.stages.evaluate.summary import Result
from matssl.stages.settings import EXPERIMENTS
from matssl.trained import exported
from matssl.trained.exported import FOLDER
from matssl.trained.segmenter import Prediction, Segmenter

# Images a "batch" of the published result file stands for.
PUBLISHED_BATCH = 128
# Endings of the weights files that the published code evaluates.
ENDINGS = (".pth", ".pt")
# The data set of which the published mean leaves a class out, and that class.
METALDAM, MINORITY = "metaldam", 3


def published_results(
    matrices: Sequence[NDArray[np.int64]],
    num_classes: int,
    excluded: Sequence[int] = (),
    dataset: str = "",
) -> dict[str, Any]:
    """Return ``evaluation_results.json`` with the keys of the MatSSL code.

    Absent classes count 0, as published. ``mean_IOU_no_minority``, which the published code never
    computes, is the mean without the excluded classes, without class 3 where none are named.
    ``mean_IOU`` is the same where the data set is called MetalDAM, whose precipitates (class 3) the
    published numbers leave out; else the mean over all classes.

    Args:
        matrices: confusion matrix of each image.
        num_classes: C.
        excluded: classes of ``--exclude_classes``.
        dataset: name of the data set.
    """
    kept = [i for i in range(num_classes) if i not in (excluded or (MINORITY,))]
    counted = kept if METALDAM in dataset.lower() else list(range(num_classes))
    batches = [
        np.sum(matrices[i : i + PUBLISHED_BATCH], axis=0)
        for i in range(0, len(matrices), PUBLISHED_BATCH)
    ]
    entries = []
    for number, counts in enumerate(batches):
        scores = np.nan_to_num(overlap.iou(counts))
        iou = {f"IOU_{i}": float(s) for i, s in enumerate(scores)}
        iou["mean_IOU"] = float(scores[counted].mean())
        entries.append({"batch_idx": number, "iou": iou})
    mean = np.mean([np.nan_to_num(overlap.iou(c)) for c in batches], axis=0)
    result: dict[str, Any] = {
        "avg_class_ious": {
            **{str(i): float(s) for i, s in enumerate(mean)},
            "mean_IOU_no_minority": float(mean[kept].mean()),
            "mean_IOU": float(mean[counted].mean()),
        },
        "batch_results": entries,
    }
    if num_classes == 2:
        pooled = np.sum(matrices, axis=0)
        (tn, fp), (fn, tp) = pooled.tolist()
        result["pixel_metrics"] = {
            "precision": float(np.nan_to_num(overlap.precision(pooled)[1])),
            "recall": float(np.nan_to_num(overlap.recall(pooled)[1])),
            "f1_score": float(np.nan_to_num(overlap.dice(pooled)[1])),
            "accuracy": overlap.accuracy(pooled),
            "true_positives": tp,
            "false_positives": fp,
            "false_negatives": fn,
            "true_negatives": tn,
        }
    return result


def as_asked(segmenter: Segmenter, settings: EvaluateSettings) -> Segmenter:
    """Return the model with the threshold of the command, where it names one; it is said.

    Raises:
        UserError: the model, or what is asked of it, is not of two classes.
    """
    names, given = segmenter.table.names, settings.threshold
    if given is not None and len(names) != 2:
        raise UserError(f"--threshold is for models of two classes; this one has {len(names)}")
    limit = segmenter.threshold if given is None else given
    if limit is None:
        return _factors_told(segmenter)
    source = "as trained" if given is None else "--threshold"
    note = f"note    {names[1]} is where its probability is above {limit:g} ({source})"
    note = "\n".join(part for part in (segmenter.note, note) if part)
    return replace(segmenter, threshold=limit, factors=(), note=note)


def _factors_told(segmenter: Segmenter) -> Segmenter:
    """Return a model whose note names its factors, where validation images chose some."""
    if not segmenter.factors:
        return segmenter
    pairs = zip(segmenter.table.names, segmenter.factors, strict=True)
    said = ", ".join(f"{name} {factor:.2f}" for name, factor in pairs)
    note = f"note    a class is where its probability times a factor is largest: {said}"
    note = "\n".join(part for part in (segmenter.note, note) if part)
    return replace(segmenter, note=note)


def results_root(settings: EvaluateSettings, raw: bool) -> Path:
    """Return the folder of the results: OUTPUT_DIR/eval/NAME, or what the user named.

    MatSSL's command has no --name, evaluates a .pth file and writes to --output_dir itself.

    Args:
        settings: of the command.
        raw: whether the model is a bare state dict.

    Raises:
        UserError: ``--results_dir`` exists.
    """
    if settings.results_dir:
        published.check_absent(Path(settings.results_dir), settings.overwrite)
        return Path(settings.results_dir)
    model = hub.locate(settings.model_path).resolve()
    theirs = raw or model.suffix in ENDINGS
    if theirs and settings.name is None and settings.output_dir != EXPERIMENTS:
        return Path(settings.output_dir)
    data = (settings.dataset_name or drawing.data_name(settings.dataset)).replace(" ", "_")
    split = f"-{settings.split}" if settings.split else ""
    trained = model.parent.name if model.stem in ("best", "last") else model.stem
    if exported.leads_to_one(model):
        # RUN/exported/model.json, beside which the checkpoint's own results are to stand.
        home = model.parent
        trained = f"{home.parent.name}-{home.name}" if home.name == FOLDER else home.name
    name = settings.name or f"{trained}-on-{data}{split}"
    return Path(settings.output_dir) / "eval" / name


def write_preds(
    folder: RunFolder, settings: EvaluateSettings, name: str, found: Prediction
) -> None:
    """Write the probability of the second of two classes as unet-compare does, in preds/NAME.png.

    It is the network's own, on which a threshold acts, before the calibration. Nothing without
    ``--results_dir``, or with more classes.

    Args:
        folder: of the results.
        settings: of the command.
        name: of the image's files.
        found: of the image.
    """
    if not settings.results_dir or len(found.probabilities) != 2:
        return
    probabilities = np.array(found.probabilities)
    calibration.temper(probabilities, 1 / found.temperature)
    png = cv2.imencode(".png", drawing.eight_bit(probabilities))[1]
    atomic_write_bytes(folder.path(f"preds/{name}.png"), png.tobytes())


def write_config(folder: RunFolder, settings: EvaluateSettings) -> None:
    """Write configs.json, where the settings are those of a file of unet-compare."""
    config = published.unet_compare_config(settings.config, declared(EvaluateSettings))
    if config is not None:
        folder.write_json("configs.json", config)


def name_panels(place: Path, results: Sequence[Result]) -> None:
    """Give the panels the names of the MatSSL code too, which scripts may look for."""
    for number, result in enumerate(results):
        batch, index = divmod(number, PUBLISHED_BATCH)
        drawn = place / f"{result.name}.png"
        if drawn.is_file():
            shutil.copyfile(drawn, place / f"vis_batch{batch}_img{index}.png")
