"""Pictures of semi-supervised training: how much of the teacher's word is believed, of what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from matssl import pictures
from matssl.pictures.segmentation import colour_names
from matssl.pictures.training import Columns, read_table


def believed(table: Path, names: Sequence[str], path: Path) -> None:
    """Draw the share of believed pixels, and what the teacher says of the classes, over the steps.

    Of a single validation bars are drawn, a course has two. Nothing is drawn where pictures without
    labels never counted.

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
    if len(steps) == 1:
        row = Columns(1)
        row.update({name: values[counted] for name, values in rows.items()})
        _once(row, names, figure, axes)
        pictures.save(figure, path)
        return
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


def _once(row: Columns, names: Sequence[str], figure: Figure, axes: Sequence[Axes]) -> None:
    """Draw one validation: what is believed of the pixels, and each class beside its labels."""
    believed, step = float(row["accepted"][0]), int(row["step"][0])
    shares = [100 * believed, 100 * (1 - believed)]
    bars = axes[0].bar(["believed", "not"], shares, color=[pictures.INK, "0.8"], width=0.6)
    axes[0].bar_label(bars, fmt="%.1f")
    axes[0].set_title(f"pixels believed, % (step {step}, the only validation)")
    axes[0].set_ylim(0, 112)
    for axis in axes:
        axis.set_axisbelow(True)
    places = np.arange(len(names))
    colours = list(colour_names(names).values())
    for side, kind, alpha in ((-0.2, "said", 0.9), (0.2, "labelled", 0.4)):
        heights = [100 * float(row[f"{kind} {name}"][0]) for name in names]
        bars = axes[1].bar(places + side, heights, 0.38, color=colours, alpha=alpha)
        axes[1].bar_label(bars, fmt="%.1f", fontsize=7)
    axes[1].set_xticks(places, names, fontsize=8)
    axes[1].set_title("what the teacher says, % (pale: labelled pixels)")
    figure.tight_layout()
