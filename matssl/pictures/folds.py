"""Curves over the folds of a cross-validation: their mean and how far they lie apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from matssl import pictures
from matssl.core.arrays import Array
from matssl.pictures.segmentation import legible

# Points of a curve from which on it is smoothed: a loss jumps from step to step.
MANY, WINDOW = 60, 30


def band(
    rows: Sequence[Mapping[str, object]], metrics: Sequence[str], path: Path, title: str
) -> None:
    """Draw the mean of each metric over the folds, with a band of one standard deviation.

    Args:
        rows: with step, metric, mean, sd and n.
        metrics: which, by name; each has its own colour.
        path: PNG file.
        title: above it.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(5.2, 3.4))
    most = max((int(str(row["n"])) for row in rows), default=0)
    for number, metric in enumerate(metrics):
        own = sorted((row for row in rows if row["metric"] == metric), key=_step)
        columns = (np.array([_number(row[name]) for row in own]) for name in ("mean", "sd"))
        mean, spread = (_smooth(column) for column in columns)
        steps = np.array([_step(row) for row in own])[: len(mean)]
        colour = pictures.SERIES[number % len(pictures.SERIES)]
        label = legible([metric])[0]
        marker = "o" if len(mean) <= WINDOW else ""
        axis.plot(steps, mean, color=colour, lw=1.6, marker=marker, ms=3, label=label)
        around = np.nan_to_num(spread)
        axis.fill_between(steps, mean - around, mean + around, color=colour, alpha=0.18, lw=0)
    axis.set_xlabel("step")
    axis.set_title(f"{title}: mean and sd of {most} folds")
    if len(metrics) > 1:
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    pictures.save(figure, path)


def _step(row: Mapping[str, object]) -> int:
    return int(str(row["step"]))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _smooth(values: Array) -> Array:
    """Return the running mean of a long curve, a short one as it is."""
    if len(values) < MANY:
        return values
    known = np.isfinite(values).astype(float)
    kernel = np.ones(max(2, len(values) // WINDOW))
    held = np.convolve(known, kernel, mode="same")
    total = np.convolve(np.nan_to_num(values), kernel, mode="same")
    return np.where(held > 0, total / np.maximum(held, 1), np.nan)
