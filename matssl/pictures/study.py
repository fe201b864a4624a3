"""The picture of a study: mIoU over the number of labelled images, one line an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from matssl import pictures

# Beyond as many arms as there are colours, other markers tell them apart.
MARKERS = ("o", "s", "^", "D", "v", "P")
# Names of arms beside each other in the legend.
ABREAST = 4
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
    styles = _styles(panels)
    under = 0.2 + 0.2 * -(-len(styles) // ABREAST)
    size = (max(4.6, 3.4 * columns), 2.9 * rows + under)
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis, (title, lines) in zip(axes.flat, panels, strict=False):
        several = any(len(set(x)) > 1 for _, x, _, _ in lines)
        for number, (label, x, y, spread) in enumerate(lines):
            # One number of labels gives a column of points; side by side they can be read.
            place = np.array(x, float) if several else np.array([float(number)])
            if several and len(set(x)) > 1:
                # A little aside of each other, so that the bars of equal scores can be told apart.
                place *= 1.03 ** (number - (len(lines) - 1) / 2)
            bars = np.nan_to_num(np.array(spread, float))
            width = 1.4 if several else 0
            axis.errorbar(place, y, yerr=bars, lw=width, elinewidth=1, capsize=2, **styles[label])
        axis.set_title(title)
        if several:
            axis.set_xscale("log")
            ticks = sorted({v for _, x, _, _ in lines for v in x})
            axis.set_xticks(ticks, [f"{t:.3g}" for t in ticks])
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
    handles = [Line2D([], [], lw=1.4, **style) for style in styles.values()]
    figure.tight_layout(rect=(0, (under - 0.05) / size[1], 1, 1))
    names = [pictures.legible(name) for name in styles]
    figure.legend(handles, names, loc="lower center", ncols=min(ABREAST, len(names)))
    pictures.save(figure, path)


def _styles(panels: Sequence[tuple[str, Sequence[Line]]]) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each arm, in the order of their first lines."""
    names = list(dict.fromkeys(line[0] for _, lines in panels for line in lines))
    return {
        name: {
            "color": pictures.SERIES[place % len(pictures.SERIES)],
            "marker": MARKERS[place // len(pictures.SERIES) % len(MARKERS)],
            "ls": "-" if place < len(pictures.SERIES) else "--",
            "ms": 4,
        }
        for place, name in enumerate(names)
    }
