"""Area fractions by specimen with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from matssl.pictures import FAINT, INK, SERIES, blank, legible, save

# Specimens in one picture; of more the first are drawn and the number is said.
MOST = 40
# Panels side by side.
WIDE = 4


class Bar(NamedTuple):
    """One specimen in the panel of a class; shares between 0 and 1.

    Attributes:
        name: of the specimen.
        fields: share of each field.
        mean: mean, lower and upper end of its interval; NaN ends for none.
        corrected: the same without the classifier's error; None for none.
    """

    name: str
    fields: Sequence[float]
    mean: tuple[float, float, float]
    corrected: tuple[float, float, float] | None = None


def by_specimen(panels: Mapping[str, Sequence[Bar]], path: Path) -> None:
    """Write one panel a class: fields as grey dots, means with their intervals beside them.

    Args:
        panels: specimens by class.
        path: PNG file.
    """
    count = len(panels)
    most = min(MOST, max(map(len, panels.values())))
    columns = min(WIDE, count)
    rows = math.ceil(count / columns)
    if blank(path):
        return
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=((2.6 if columns > 2 else 3.3) * columns + 0.9, (0.32 * most + 1.1) * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis, (name, bars) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, bars[:MOST])
        more = f" (first {MOST} of {len(bars)} specimens)" if len(bars) > MOST else ""
        axis.set_title(legible(name, 40) + more)
    for axis in list(axes.flat)[count:]:
        axis.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    save(figure, path)


def _panel(axis: Axes, bars: Sequence[Bar]) -> None:
    corrected = any(bar.corrected is not None for bar in bars)
    shift = 0.14 if corrected else 0.0
    for place, bar in enumerate(bars):
        axis.plot(
            [100 * share for share in bar.fields],
            [place] * len(bar.fields),
            "o",
            color=FAINT,
            markersize=3,
            label="fields" if place == 0 else None,
        )
        _mark(
            axis,
            bar.mean,
            place - shift,
            SERIES[0],
            "o",
            "mean of the fields, 95 % interval",
            place == 0,
        )
        if bar.corrected is not None:
            told = "corrected, with the classifier's error"
            _mark(axis, bar.corrected, place + shift, SERIES[1], "s", told, place == 0)
    axis.set_yticks(range(len(bars)), [legible(bar.name, 24) for bar in bars])
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.set_xlabel("area fraction, %", color=INK)
    axis.grid(axis="y", visible=False)
    low, high = axis.get_xlim()
    axis.set_xlim(max(-2.0, low), min(102.0, high))


def _mark(
    axis: Axes,
    ends: tuple[float, float, float],
    height: float,
    colour: str,
    marker: str,
    label: str,
    first: bool,
) -> None:
    mean, low, high = (100 * value for value in ends)
    reach = None if math.isnan(low) else [[max(0.0, mean - low)], [max(0.0, high - mean)]]
    axis.errorbar(
        [mean],
        [height],
        xerr=reach,
        fmt=marker,
        color=colour,
        markersize=5,
        capsize=3,
        linewidth=1.6,
        label=label if first else None,
    )
