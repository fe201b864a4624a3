"""Pictures of semi-supervised training: how much of the teacher's word is believed, of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from matssl import pictures
from matssl.pictures.segmentation import colour_names
from matssl.pictures.training import read_table


def believed(table: Path, names: Sequence[str], path: Path) -> None:
    """Draw the share of believed pixels, and what the teacher says of the classes, over the steps.

    Nothing is drawn where pictures without labels never counted.

    Args:
        table: semi.csv of a run.
        names: of the classes.
        path: PNG file.
    """
    rows = read_table(table)
    counted = ~np.isnan(rows["accepted"])
    if not counted.any():
        return
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    steps = rows["step"][counted]
    style = {"color": pictures.INK, "lw": 1.6, "marker": "o", "ms": 4}
    axes[0].plot(steps, 100 * rows["accepted"][counted], **style)
    axes[0].set_title("pixels believed, %")
    axes[0].set_ylim(0, 103)
    for name, colour in colour_names(names).items():
        share = 100 * rows[f"said {name}"][counted]
        axes[1].plot(steps, share, marker="o", ms=4, lw=1.4, color=colour, label=name)
        axes[1].axhline(100 * rows[f"labelled {name}"][0], color=colour, ls="--", lw=1)
    axes[1].set_title("what the teacher says, % (dashed: labelled pixels)")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    for axis in axes:
        # The whole run, also where they counted in a part of it.
        axis.set_xlim(0, 1.02 * float(rows["step"].max()))
        axis.set_xlabel("step")
    figure.tight_layout()
    pictures.save(figure, path)
