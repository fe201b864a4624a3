"""All scores of an evaluation as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.config import EvaluateConfig
from matssl.core.errors import UserError
from matssl.data.layouts import Pair
from matssl.data.masks import ClassTable
from matssl.measure import intervals
from matssl.metrics import SCORES, overlap


@dataclass(frozen=True)
class Result:
    """What one image gave.

    Attributes:
        pair: image, mask and group.
        name: of its output files.
        counts: int64 (C, C), None without a mask.
        fractions: predicted area fraction of each class, over the labelled pixels where there is
            a mask (what the true fraction is taken over), else over all.
        pixel_size: nm, None where unknown.
        baseline_counts: confusion matrix of each baseline by name.
        digest: SHA-256 of the image's pixels as they lie in its file.
    """

    pair: Pair
    name: str
    counts: NDArray[np.int64] | None
    fractions: NDArray[np.float64]
    pixel_size: float | None
    baseline_counts: dict[str, NDArray[np.int64]]
    digest: str


def summarise(
    results: Sequence[Result], table: ClassTable, config: EvaluateConfig
) -> dict[str, Any]:
    """Return all scores as plain values; every one a function of the confusion matrices."""
    scored = [r for r in results if r.counts is not None]
    summary: dict[str, Any] = {
        "images": len(results),
        "images_with_truth": len(scored),
        "classes": list(table.names),
        "phase_fractions": _fractions(results, table),
    }
    if not scored:
        return summary
    matrices = [r.counts for r in scored if r.counts is not None]
    pooled = np.sum(matrices, axis=0)
    groups = [r.pair.group for r in scored]
    by_group = len(set(groups)) < len(groups)
    interval = intervals.bootstrap(matrices, groups, overlap.miou, config.bootstrap, config.seed)
    per_image = np.array([overlap.miou(c) for c in matrices])
    summary["pooled"] = {
        "classes": _by_class(pooled, table),
        "means": overlap.means(pooled, excluded(config, table)),
        "miou_interval_95": interval,
        "interval_resamples": "groups" if by_group else "images",
        "groups": len(set(groups)),
    }
    summary["per_image"] = {
        "miou_mean": float(np.nanmean(per_image)),
        "miou_std": float(np.nanstd(per_image, ddof=1)) if len(per_image) > 1 else None,
        "miou_min": float(np.nanmin(per_image)),
        "miou_max": float(np.nanmax(per_image)),
    }
    summary["confusion"] = pooled.tolist()
    if scored[0].baseline_counts:
        summary["baselines"] = {}
        for name in scored[0].baseline_counts:
            total = np.sum([r.baseline_counts[name] for r in scored], axis=0)
            iou = dict(zip(table.names, overlap.iou(total).tolist(), strict=True))
            entry = {"miou": overlap.miou(total), "iou": iou, "accuracy": overlap.accuracy(total)}
            summary["baselines"][name] = entry
    return summary


def excluded(config: EvaluateConfig, table: ClassTable) -> tuple[int, ...]:
    """Return the indices of ``--exclude_classes``.

    Raises:
        UserError: a name that the model does not know, or all of them.
    """
    names = [word.strip() for word in (config.exclude_classes or "").split(",") if word.strip()]
    unknown = [name for name in names if name not in table.names]
    if unknown or len(set(names)) == table.num_classes:
        raise UserError(
            f"--exclude_classes {config.exclude_classes}: the model knows "
            f"{', '.join(table.names)}, and at least one must be left"
        )
    return tuple(sorted({table.names.index(name) for name in names}))


def _by_class(counts: NDArray[np.int64], table: ClassTable) -> dict[str, dict[str, float]]:
    scores = {name: score(counts) for name, score in SCORES.items()}
    truth = counts.sum(axis=1)
    return {
        name: {
            **{kind: float(values[i]) for kind, values in scores.items()},
            "true_pixels": int(truth[i]),
        }
        for i, name in enumerate(table.names)
    }


def _fractions(results: Sequence[Result], table: ClassTable) -> dict[str, Any]:
    """Return predicted and true phase fractions over specimens, with ASTM E562 intervals."""
    scored = [r for r in results if r.counts is not None]
    summary: dict[str, Any] = {}
    for i, name in enumerate(table.names):
        everywhere = _by_specimen(results, [float(r.fractions[i]) for r in results])
        entry: dict[str, Any] = {"predicted": vars(intervals.phase_fraction(everywhere))}
        if scored:
            true = [true_fractions(r)[i] for r in scored]
            predicted = [float(r.fractions[i]) for r in scored]
            difference = np.array(predicted) - np.array(true)
            entry["truth"] = vars(intervals.phase_fraction(_by_specimen(scored, true)))
            entry["mean_error"] = float(np.nanmean(difference))
            entry["mean_absolute_error"] = float(np.nanmean(np.abs(difference)))
        summary[name] = entry
    return summary


def _by_specimen(results: Sequence[Result], values: Sequence[float]) -> list[float]:
    """Return the mean of each group: images of one specimen are no independent fields."""
    groups: dict[str, list[float]] = {}
    for result, value in zip(results, values, strict=True):
        groups.setdefault(result.pair.group, []).append(value)
    return [float(np.mean(fields)) for fields in groups.values()]


def true_fractions(result: Result) -> list[float]:
    """Return the area fraction of each class in the mask, over its labelled pixels."""
    assert result.counts is not None
    truth = result.counts.sum(axis=1)
    total = truth.sum()
    return [float(t / total) if total else float("nan") for t in truth]
