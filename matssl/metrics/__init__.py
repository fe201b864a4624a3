"""Counts, and scores that are pure functions of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from matssl.metrics import boundary, counts, overlap
from matssl.metrics.score import Gathered, Score

# Scores by the name they have in tables.
SCORES: dict[str, Score] = {
    "IoU": Score(counts.confusion, overlap.pooled(overlap.iou)),
    "Dice": Score(counts.confusion, overlap.pooled(overlap.dice)),
    "precision": Score(counts.confusion, overlap.pooled(overlap.precision)),
    "recall": Score(counts.confusion, overlap.pooled(overlap.recall)),
    "boundary F1": Score(boundary.border_hits, boundary.f1),
}


def gather(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], num_classes: int) -> Gathered:
    """Return what every score needs of one image.

    Args:
        truth: class indices, uint8 (H, W); 255 counts for nothing.
        prediction: class indices, same shape.
        num_classes: C.
    """
    functions = dict.fromkeys(score.gather for score in SCORES.values())
    return {function: function(truth, prediction, num_classes) for function in functions}


def by_name(images: Sequence[Gathered]) -> dict[str, NDArray[np.float64]]:
    """Return every score of several images together, each (C,), by its name in SCORES."""
    return {
        name: score.reduce(np.stack([image[score.gather] for image in images]))
        for name, score in SCORES.items()
    }


def mean_name(name: str) -> str:
    """Return what the mean of a score over the classes is called in files: miou for IoU."""
    return f"m{name.lower().replace(' ', '_')}"


def means(images: Sequence[Gathered], excluded: Sequence[int] = ()) -> dict[str, object]:
    """Return every mean of several images together under its own name.

    Args:
        images: what was gathered of each.
        excluded: classes that one further mean IoU leaves out; their pixels still count against
            the others where they are taken for them.
    """
    pooled = np.sum([image[counts.confusion] for image in images], axis=0)
    kept = [i for i in range(len(pooled)) if i not in excluded]
    without = {"miou_without_excluded": overlap.mean(overlap.iou(pooled)[kept])} if excluded else {}
    each = {mean_name(name): overlap.mean(values) for name, values in by_name(images).items()}
    return without | each | overlap.summary(pooled)
