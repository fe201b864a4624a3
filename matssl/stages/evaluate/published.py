"""Files of an evaluation as the MatSSL code writes them, for scripts that look for them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.metrics import overlap
from matssl.stages.evaluate.summary import Result

# Images a "batch" of the published result file stands for.
PUBLISHED_BATCH = 128
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


def name_panels(place: Path, results: Sequence[Result]) -> None:
    """Give the panels the names of the MatSSL code too, which scripts may look for."""
    for number, result in enumerate(results):
        batch, index = divmod(number, PUBLISHED_BATCH)
        drawn = place / f"{result.name}.png"
        if drawn.is_file():
            shutil.copyfile(drawn, place / f"vis_batch{batch}_img{index}.png")
