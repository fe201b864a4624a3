"""Pictures of a choice: what a model is unsure of, all that was chosen, learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from matssl import pictures
from matssl.core.arrays import Array
from matssl.pictures import segmentation

# Colours of uncertainty: dark where a model is sure, in print and for colour-blind eyes too.
COLOURS = "magma"
MARK = "#56b4e9"
# Longest side of a picture in a panel, and of one on the sheet, in pixels.
MOST_DRAWN, THUMBNAIL = 1200, 320
# Top, left, height, width in pixels, and what stands beside the region.
Region = tuple[int, int, int, int, str]


def uncertainty(
    image: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    names: Sequence[str],
    values: Array,
    path: Path,
    title: str,
    measure: str,
    top: float = 1.0,
    regions: Sequence[Region] = (),
) -> None:
    """Write micrograph, prediction and uncertainty side by side, with a scale.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        classes: predicted, uint8 (H, W).
        names: of the classes.
        values: uncertainty of each pixel, (H, W).
        path: PNG file.
        title: above it.
        measure: what the values are.
        top: largest value the measure can have, where the scale ends.
        regions: chosen ones, framed.
    """
    factor = max(1.0, max(image.shape[:2]) / MOST_DRAWN)
    if factor > 1:
        height, width = image.shape[:2]
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        classes = cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST_EXACT)
        values = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
    height, width = image.shape[:2]
    shown = segmentation.overlay(image, classes, len(names))
    parts: list[tuple[str, Array]] = [
        ("micrograph", image),
        ("prediction", segmentation.outlined(shown, classes)),
        (measure, values),
    ]
    # A wide picture lies above the next, so that its map is large enough to be read.
    wide = width > 2.2 * height
    rows, columns = (3, 1) if wide else (1, 3)
    cell = 11.4 if wide else 3.9
    if pictures.blank(path):
        return
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(cell * columns + 0.7, cell * height / width * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    axes = grid.ravel()
    for axis, (label, content) in zip(axes, parts, strict=True):
        scale = {"cmap": COLOURS, "vmin": 0.0, "vmax": top}
        look = scale if content is values else {"cmap": "gray", "vmin": 0, "vmax": 255}
        drawn = axis.imshow(content, interpolation="nearest", **look)
        axis.set_title(pictures.legible(label), fontsize=9, fontweight="normal")
        axis.axis("off")
        for region in regions:
            _frame(axis, region, factor)
        if content is values:
            bar = figure.colorbar(drawn, ax=axis, fraction=0.05, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=8)
    colours = segmentation.colour_names(segmentation.legible(names))
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(
        handles=patches,
        loc="outside lower left",
        ncols=max(1, min(len(patches), 6)),
        fontsize=8,
        handlelength=1.2,
    )
    figure.suptitle(pictures.legible(title), x=0.005, ha="left", fontsize=11, fontweight="bold")
    pictures.save(figure, path)


def sheet(looks: Sequence[tuple[NDArray[np.uint8], str, Sequence[Region]]], path: Path) -> None:
    """Write all chosen pictures small, side by side.

    Args:
        looks: of each: uint8 (H, W) or (H, W, 3), its caption, its regions.
        path: PNG file.
    """
    columns = min(5, len(looks))
    rows = -(-len(looks) // columns)
    if pictures.blank(path):
        return
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.3 * columns, 2.55 * rows), squeeze=False, layout="constrained"
    )
    for axis in grid.ravel():
        axis.axis("off")
    for axis, (image, caption, regions) in zip(grid.ravel(), looks, strict=False):
        factor = max(1.0, max(image.shape[:2]) / THUMBNAIL)
        size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if factor > 1 else image
        axis.imshow(small, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(pictures.legible(caption, 44), fontsize=7, fontweight="normal")
        for region in regions:
            _frame(axis, region, factor)
    pictures.save(figure, path)


def curves(
    arms: Mapping[str, tuple[Array, Array, Array]],
    path: Path,
    score: str,
    cost: str,
    ceiling: float | None = None,
    chance: Sequence[str] = (),
) -> None:
    """Write learning curves: score against what the labels cost, with intervals over seeds.

    Args:
        arms: of each method its mean costs, mean scores and half widths of intervals (NaN: none),
            a budget each.
        path: PNG file.
        score: what the score is.
        cost: what the cost is, with its unit.
        ceiling: score with all labels.
        chance: methods that are drawn in grey.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(6.4, 3.8))
    colours = iter(pictures.SERIES * (1 + len(arms) // len(pictures.SERIES)))
    grey = iter(("#52606d", pictures.FAINT, "#cbd2d9"))
    count = max(1, len(arms) - 1)
    ticks: dict[float, str] = {}
    for number, (name, (costs, mean, half)) in enumerate(arms.items()):
        colour = next(grey, pictures.FAINT) if name in chance else next(colours)
        # Side by side, so that intervals do not hide each other.
        x = np.log2(costs) + 0.16 * (number / count - 0.5)
        whole = bool((costs == np.rint(costs)).all())
        ticks |= {float(np.log2(cost)): f"{cost:g}" for cost in costs} if whole else {}
        axis.errorbar(
            x,
            100 * mean,
            yerr=100 * np.nan_to_num(half),
            color=colour,
            lw=1.6,
            ls="--" if name in chance else "-",
            marker="o",
            ms=4,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    if ceiling is not None:
        axis.axhline(100 * ceiling, color=pictures.FAINT, lw=1, ls=":")
        axis.annotate(
            "all labels",
            (axis.get_xlim()[0], 100 * ceiling),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
            color="#52606d",
        )
    if ticks:
        axis.set_xticks(sorted(ticks), [ticks[place] for place in sorted(ticks)])
    else:
        axis.xaxis.set_major_formatter(lambda place, _: f"{2**place:.2g}")
    axis.set_xlabel(cost)
    axis.set_ylabel(f"{score}, %")
    axis.legend(fontsize=7.5, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    pictures.save(figure, path)


def areas(rows: Sequence[tuple[str, float, float]], path: Path, against: str) -> None:
    """Write the gain of each method over chance as a point with its interval.

    Args:
        rows: of each method its name, mean gain and half width (NaN: no interval), 0 to 1.
        path: PNG file.
        against: what it is compared with.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(4.6, 0.8 + 0.32 * len(rows)))
    axis.axvline(0, color=pictures.FAINT, lw=1, ls="--")
    for place, (_, gain, half) in enumerate(rows):
        clear = abs(gain) > half
        axis.errorbar(
            [100 * gain],
            [place],
            xerr=[0 if np.isnan(half) else 100 * half],
            color=pictures.SERIES[0] if clear else "#52606d",
            marker="o",
            ms=5,
            capsize=3,
        )
    axis.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"points of area under the curve beyond {against}")
    pictures.save(figure, path)


def _frame(axis: Axes, region: Region, factor: float) -> None:
    """Frame a region in a picture that is drawn ``factor`` times smaller."""
    top, left, height, width, label = region
    axis.add_patch(
        Rectangle(
            (left / factor - 0.5, top / factor - 0.5),
            width / factor,
            height / factor,
            fill=False,
            edgecolor=MARK,
            linewidth=1.6,
        )
    )
    if label:
        axis.text(
            left / factor + 3,
            top / factor + 3,
            label,
            color="white",
            fontsize=7,
            ha="left",
            va="top",
            bbox={"facecolor": MARK, "edgecolor": "none", "pad": 1.2},
        )
