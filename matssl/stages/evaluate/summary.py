"""All scores of an evaluation as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl import metrics
from matssl.core.errors import UserError
from matssl.data.layouts import Pair
from matssl.measure import fractions, score_intervals
from matssl.measure.field import Field
from matssl.metrics import overlap
from matssl.metrics.calibration import Reliability, together
from matssl.metrics.counts import confusion
from matssl.metrics.score import Gathered
from matssl.stages.evaluate import objects
from matssl.stages.evaluate.objects import OneField


@dataclass(frozen=True)
class Result:
    """What one image gave.

    Attributes:
        pair: image, mask and group.
        field: predicted area of each class, over the labelled pixels where there is a mask (what
            the true area is taken over), else over all.
        truth: true areas; None without a mask.
        gathered: what the scores need of the image; None without a mask.
        baseline_counts: confusion matrix of each baseline by name.
        digest: SHA-256 of the image's pixels as they lie in its file.
        reliability: how often pixels are right that are said to be, before and after calibration;
            None without a mask.
        objects: what was matched of each class that is made of objects.
    """

    pair: Pair
    field: Field
    truth: Field | None
    gathered: Gathered | None
    baseline_counts: dict[str, NDArray[np.int64]]
    digest: str
    reliability: tuple[Reliability, Reliability] | None = None
    objects: Mapping[int, OneField] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its output files."""
        return self.field.name

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """Confusion matrix, int64 (C, C); None without a mask."""
        return None if self.gathered is None else self.gathered[confusion]


def summarise(
    results: Sequence[Result], names: Sequence[str], excluded: Sequence[int] = ()
) -> dict[str, Any]:
    """Return all scores as plain values; every one a function of what was gathered.

    Args:
        results: of all images.
        names: of the classes.
        excluded: classes that one further mean IoU leaves out.
    """
    gathered = [r.gathered for r in results if r.gathered is not None]
    summary: dict[str, Any] = {
        "images": len(results),
        "images_with_truth": len(gathered),
        "classes": list(names),
        "phase_fractions": _fractions(results, names),
    }
    if not gathered:
        return summary
    scored = [r for r in results if r.gathered is not None]
    matrices = [one[confusion] for one in gathered]
    pooled = np.sum(matrices, axis=0)
    groups = [r.pair.group for r in scored]
    by_group = len(set(groups)) < len(groups)
    per_image = np.array([overlap.miou(c) for c in matrices])
    interval = score_intervals.mean_iou(matrices, groups)
    summary["pooled"] = {
        "classes": _by_class(gathered, names),
        "means": metrics.means(gathered, excluded),
        "miou_interval_95": interval.ends,
        "interval_over": "groups" if by_group else "images",
        "interval_needs": interval.needed,
        "interval_lonely": None if interval.lonely is None else names[interval.lonely],
        "groups": len(set(groups)),
    }
    summary["per_image"] = {
        "miou_mean": float(np.nanmean(per_image)),
        "miou_std": float(np.nanstd(per_image, ddof=1)) if len(per_image) > 1 else None,
        "miou_min": float(np.nanmin(per_image)),
        "miou_max": float(np.nanmax(per_image)),
    }
    summary["confusion"] = pooled.tolist()
    if any(r.objects for r in scored):
        summary["objects"] = objects.summary(
            [r.objects for r in scored], [r.field.pixel_size for r in scored], names
        )
    summary |= _calibration(scored)
    if scored[0].baseline_counts:
        summary["baselines"] = _baselines(scored, names)
    return summary


def excluded_classes(text: str | None, names: Sequence[str]) -> tuple[int, ...]:
    """Return the indices of ``--exclude_classes``.

    Args:
        text: names between commas.
        names: of the model's classes.

    Raises:
        UserError: a name that the model does not know, or all of them.
    """
    words = [word.strip() for word in (text or "").split(",") if word.strip()]
    if not set(words) <= set(names) or len(set(words)) == len(names):
        raise UserError(
            f"--exclude_classes {text}: the model knows {', '.join(names)}, and at least one must "
            "be left"
        )
    return tuple(sorted({list(names).index(word) for word in words}))


def _by_class(gathered: Sequence[Gathered], names: Sequence[str]) -> dict[str, dict[str, float]]:
    scores = metrics.by_name(gathered)
    pixels = np.sum([one[confusion] for one in gathered], axis=0).sum(axis=1)
    return {
        name: {
            **{kind: float(values[i]) for kind, values in scores.items()},
            "true_pixels": int(pixels[i]),
        }
        for i, name in enumerate(names)
    }


def _calibration(scored: Sequence[Result]) -> dict[str, Any]:
    """Return the calibration error before and after, and the bins of the reliability diagram."""
    parts = [r.reliability for r in scored if r.reliability is not None]
    before, after = (together([part[i] for part in parts]) for i in (0, 1))
    if before is None or after is None:
        return {}
    entry: dict[str, Any] = {"ece_before": before.error, "ece_after": after.error}
    entry |= {"confidence_minus_accuracy": after.excess, "pixels": int(after.pixels.sum())}
    return {"calibration": {**entry, "bins_before": before.rows(), "bins_after": after.rows()}}


def _baselines(scored: Sequence[Result], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    entries = {}
    for name in scored[0].baseline_counts:
        total = np.sum([r.baseline_counts[name] for r in scored], axis=0)
        iou = dict(zip(names, overlap.iou(total).tolist(), strict=True))
        entry = {"miou": overlap.miou(total), "iou": iou, "accuracy": overlap.accuracy(total)}
        entries[name] = entry
    return entries


def _fractions(results: Sequence[Result], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return predicted and true area fractions (ASTM E1245) with their intervals."""
    predicted = fractions.over_specimens([r.field for r in results])
    summary: dict[str, dict[str, Any]] = {
        name: {"predicted": one.stored()} for name, one in zip(names, predicted, strict=True)
    }
    truth = [r.truth for r in results if r.truth is not None]
    if not truth:
        return summary
    off = fractions.errors([r.field for r in results if r.truth is not None], truth)
    true = fractions.over_specimens(truth)
    for name, one, error in zip(names, true, off, strict=True):
        summary[name] |= {
            "truth": one.stored(),
            "mean_error": error.mean,
            "mean_absolute_error": error.mean_absolute,
        }
    return summary
