"""The picture of a study: mIoU over the number of labelled images, one line a start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from matssl import pictures

# label, x, y, spread of each point of one line
Line = tuple[str, Sequence[float], Sequence[float], Sequence[float]]


def learning_curves(panels: Sequence[tuple[str, Sequence[Line]]], path: Path) -> None:
    """Draw one panel a data set.

    Args:
        panels: title and lines; a line's x are numbers of labelled images, its y mIoU in percent
            and its spreads standard deviations over seeds (NaN where there is one seed).
        path: PNG file.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (max(4.6, 3.4 * columns), 2.9 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    names: dict[str, str] = {}
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        several = any(len(set(x)) > 1 for _, x, _, _ in lines)
        for number, (label, x, y, spread) in enumerate(lines):
            color = names.setdefault(label, pictures.SERIES[len(names) % len(pictures.SERIES)])
            # One number of labels gives a column of points; side by side they can be read.
            place = np.array(x, float) if several else np.array([float(number)])
            bars = np.nan_to_num(np.array(spread, float))
            style = {"color": color, "marker": "o", "ms": 4, "capsize": 3}
            axis.errorbar(place, y, yerr=bars, lw=1.6 if several else 0, elinewidth=1.2, **style)
        axis.set_title(title)
        if several:
            axis.set_xscale("log")
            ticks = sorted({v for _, x, _, _ in lines for v in x})
            axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axis.minorticks_off()
            axis.set_xlabel("labelled images")
        else:
            axis.set_xticks([])
            axis.set_xlim(-0.7, len(lines) - 0.3)
            count = lines[0][1][0]
            axis.set_xlabel(f"{count:g} labelled image{'s' if count != 1 else ''}")
    for axis in axes[:, 0]:
        axis.set_ylabel("test mIoU (%), ± std of seeds")
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    handles = [Line2D([], [], color=c, marker="o", ms=4, lw=1.6) for c in names.values()]
    figure.tight_layout(rect=(0, 0.35 / size[1], 1, 1))
    figure.legend(handles, list(names), loc="lower center", ncols=min(6, len(names)))
    pictures.save(figure, path)
