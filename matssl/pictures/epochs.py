"""Loss, precision, recall and F1 of training and validation, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from matssl import pictures
from matssl.core.arrays import Array

# Columns of the table, and what the parts of the picture are called.
PARTS = {"loss": "loss", "precision": "precision", "recall": "recall", "F1Score": "F1"}


def plot(table: Mapping[str, Array], best: int, path: Path) -> None:
    """Draw the four courses, each of training and of validation; the loss on a log scale.

    Args:
        table: columns ``epoch`` and those of PARTS, each with and without ``val_`` before it.
        best: row of the epoch whose model was kept; it is marked.
        path: of the PNG file.
    """
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True)
    epochs = table["epoch"]
    for axis, (column, title) in zip(axes.flat, PARTS.items(), strict=True):
        for prefix, kind in (("", "training"), ("val_", "validation")):
            values = table[f"{prefix}{column}"]
            axis.plot(epochs, values, marker="o", ms=3, lw=1.4, label=kind)
            if prefix and np.isfinite(values[best]):
                axis.plot(
                    epochs[best],
                    values[best],
                    "o",
                    ms=9,
                    mfc="none",
                    color=pictures.INK,
                    label=f"kept: epoch {int(epochs[best])}",
                )
        axis.axvline(epochs[best], color=pictures.FAINT, ls="--", lw=1)
        axis.set_title(title)
        known = np.concatenate([table[column], table[f"val_{column}"]])
        if column == "loss" and (known[np.isfinite(known)] > 0).any():
            axis.set_yscale("log")
            # The library writes powers as formulas, which names of classes must never become.
            for part in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                part(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        elif column != "loss":
            axis.set_ylim(-0.02, 1.02)
    axes[0, 0].legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.tight_layout()
    pictures.save(figure, path)
