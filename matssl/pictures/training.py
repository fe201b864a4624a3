"""Pictures of a training run: curves, the views a method sees, what an encoder sees."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.typing import ColorType

from matssl import pictures
from matssl.core import textfiles
from matssl.core.arrays import Array
from matssl.core.batch import Panel
from matssl.core.errors import UserError
from matssl.pictures.segmentation import colour_names


class Columns(dict[str, Array]):
    """Columns of a table by name; one that a damaged heading lacks is NaN."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def __missing__(self, name: str) -> Array:
        return np.full(self.rows, np.nan)


def read_table(path: Path) -> Columns:
    """Return the numeric columns of a csv file by name; empty cells are NaN."""
    try:
        rows = textfiles.read_rows(path)
    except UserError:
        # The heading of a log of before is damaged: a curve is no reason to end a run.
        rows = []
    table = Columns(len(rows))
    for name in rows[0] if rows else []:
        try:
            values = [float(row[name]) if row[name] else np.nan for row in rows]
        except ValueError:
            continue
        table[name] = np.array(values)
    return table


def pretraining_curves(steps_csv: Path, log_csv: Path, probe_csv: Path, path: Path) -> None:
    """Draw loss, learning rate, spread and rank of the embeddings of a pretraining run.

    Of a method that predicts pixels, its loss on fixed views and the rank of the features instead;
    of one that groups cells, the prototypes in use and that rank.
    Where there is a dense probe, its mean IoU and the gap of the embeddings stand beside them.
    """
    steps, log = read_table(steps_csv), read_table(log_csv)
    if not steps:
        return
    pixels, groups = "masked_loss" in log, "prototypes" in log
    probe = read_table(probe_csv) if probe_csv.is_file() else Columns(0)
    columns = 3 if probe and log else 2
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 5), sharex=True)
    if probe and log:
        score = 100 * probe["probe_miou"]
        at, top_step = probe["step"], int(np.argmax(score))
        axes[0, 2].plot(at, score, marker="o", ms=3, lw=1.4)
        axes[0, 2].plot(
            at[top_step], score[top_step], "o", ms=8, mfc="none", color=pictures.SERIES[1]
        )
        _level(axes[0, 2], score[0], "before the first step")
        axes[0, 2].set_title(f"dense probe, mIoU % (best {score[top_step]:.1f})")
        if not (pixels or groups):
            axes[1, 2].plot(log["step"], log["gap"], marker="o", ms=3, lw=1.4)
            axes[1, 2].set_title("positives closer than negatives by")
        else:
            axes[1, 2].axis("off")
            axes[0, 2].tick_params(labelbottom=True)
    _smooth_line(axes[0, 0], steps["step"], steps["loss"])
    axes[0, 0].set_title("loss")
    axes[0, 1].plot(steps["step"], steps["lr"], lw=1.4)
    axes[0, 1].set_title("learning rate")
    left = ("std", "ideal_std", "even over the sphere", "spread of the embeddings (0: collapsed)")
    right = ("rank", "dimensions", "all there are", "dimensions the embeddings use")
    if pixels:
        left = ("masked_loss", "chance_loss", "a constant answer", "loss on fixed views")
    if groups:
        left = ("prototypes_in_use", "prototypes", "all there are", "prototypes in use")
    if pixels or groups:
        right = ("feature_rank", "feature_dimensions", "all there are", "dimensions in use")
    for axis, (name, level, meaning, title) in zip(axes[1], (left, right), strict=False):
        axis.set_title(title)
        if log:
            axis.plot(log["step"], log[name], marker="o", ms=3, lw=1.4)
            top = float(log[level][0])
            _level(axis, top, meaning)
            axis.set_ylim(0, 1.2 * max(top, *log[name]))
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    pictures.save(figure, path)


def _level(axis: Axes, height: float, meaning: str) -> None:
    """Draw a named level to compare a curve with."""
    axis.axhline(height, color=pictures.FAINT, ls="--", lw=1)
    axis.annotate(
        meaning,
        (0.99, height),
        (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        color=pictures.FAINT,
    )


def finetuning_curves(steps_csv: Path, log_csv: Path, path: Path) -> None:
    """Draw loss, learning rate, validation mIoU and IoU of each class of a fine-tuning run."""
    steps, log = read_table(steps_csv), read_table(log_csv)
    if not steps:
        return
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    _smooth_line(axes[0], steps["step"], steps["loss"])
    axes[0].set_title("training loss")
    axes[1].plot(steps["step"], steps["lr"], lw=1.4)
    axes[1].set_title("learning rate")
    if log:
        style = {"color": pictures.INK, "lw": 2, "marker": "o", "ms": 4}
        axes[2].plot(log["step"], log["val_miou"], label="mean", **style)
        classes = [name[4:] for name in log if name.startswith("iou ")]
        for name, colour in colour_names(classes).items():
            axes[2].plot(
                log["step"], log[f"iou {name}"], lw=1.2, marker=".", label=name, color=colour
            )
        axes[2].set_ylim(0, 1)
        # Beside the curves, which may run anywhere.
        axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes[2].set_title("validation IoU")
    for axis in axes:
        axis.set_xlabel("step")
        # All three over the whole run, where a single validation has no span of its own too.
        last = float(steps["step"][-1])
        axis.set_xlim(-0.02 * last, 1.02 * last)
    figure.tight_layout()
    pictures.save(figure, path)


def miou_curve(epochs: Array, miou: Array, path: Path) -> None:
    """Draw validation mIoU over epochs, one point a validation."""
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(5, 3.2))
    axis.plot(epochs, miou, color=pictures.INK, lw=1.6, marker="o", ms=3)
    axis.set_ylim(0, 1)
    axis.set_xlabel("epoch")
    axis.set_ylabel("validation mIoU")
    figure.tight_layout()
    pictures.save(figure, path)


def views_sheet(views: Sequence[Array], path: Path, columns: int = 8) -> None:
    """Draw pairs of views of the first samples of a batch, one pair above the other.

    Args:
        views: uint8 (B, C, S, S), one array for each view of a sample.
        path: PNG file.
        columns: samples drawn in a row; two rows of samples at most.
    """
    count = min(2 * columns, len(views[0]))
    columns, rows = min(columns, count), -(-count // columns)
    # Inches: the views of a sample stand close together, with a gap to the next row of samples.
    cell, space, gap, left, top = 1.25, 0.04, 0.22, 0.62, 0.36
    band = len(views) * (cell + space) + gap
    width, height = left + columns * (cell + space), top + rows * band
    if pictures.blank(path):
        return
    figure = plt.figure(figsize=(width, height))
    for sample in range(count):
        row, column = divmod(sample, columns)
        for number, view in enumerate(views):
            x = left + column * (cell + space)
            y = height - top - row * band - number * (cell + space) - cell
            axis = figure.add_axes((x / width, y / height, cell / width, cell / height))
            axis.imshow(_displayed(view[sample]), cmap="gray", vmin=0, vmax=255)
            axis.axis("off")
            if column == 0 and len(views) > 1:
                middle = (y + cell / 2) / height
                figure.text(
                    (left - 0.08) / width, middle, f"view {number + 1}", ha="right", va="center"
                )
    title = (
        "Two views of each sample: the method learns that they belong together"
        if len(views) > 1
        else "Views of some samples: the method learns to fill in what is hidden of them"
    )
    figure.text(left / width, 1 - 0.08 / height, title, weight="bold", size=11, va="top")
    pictures.save(figure, path)


def features_sheet(images: Sequence[Array], features: Sequence[Array], path: Path) -> None:
    """Draw images above what an encoder sees in them, its features projected to three colours.

    Similar colour means similar features, over all images of the sheet.

    Args:
        images: uint8 (H, W) or (H, W, 3).
        features: float (D, h, w) of each image.
        path: PNG file.
    """
    colours = project_to_colour(features)
    count = len(images)
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(2, count, figsize=(2.1 * count, 4.6), squeeze=False)
    for column in range(count):
        height, width = images[column].shape[:2]
        axes[0, column].imshow(images[column], cmap="gray")
        axes[1, column].imshow(
            colours[column], interpolation="bilinear", extent=(0, width, height, 0)
        )
        for axis in axes[:, column]:
            axis.axis("off")
    figure.subplots_adjust(left=0, right=1, top=0.9, bottom=0, wspace=0.03, hspace=0.03)
    title = "What the encoder sees: alike colours are alike features"
    figure.text(0, 0.985, title, weight="bold", size=11, va="top")
    pictures.save(figure, path)


def panel_sheet(panel: Panel, path: Path, names: Sequence[str] = ()) -> None:
    """Draw a method's picture: samples side by side, the kinds of images below each other.

    Args:
        panel: of a method.
        path: PNG file.
        names: of the classes, where the panel shows some.
    """
    rows, columns = len(panel.rows), len(panel.columns)
    # Upright sheets with few columns are turned: samples side by side fit a slide.
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(
        columns, rows, figsize=(1.9 * rows + 0.9, 1.9 * columns + 0.5), squeeze=False
    )
    for sample, images in enumerate(panel.rows):
        for kind, image in enumerate(images):
            axis = axes[kind, sample]
            axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if sample == 0:
                axis.set_ylabel(panel.columns[kind], rotation=90, fontsize=9)
    width, height = figure.get_size_inches()
    # Letters of the title are about a twelfth of an inch wide.
    lines = textwrap.wrap(panel.title, max(20, int(12 * 0.92 * width)))
    top = 0.22 * len(lines) + 0.2
    figure.subplots_adjust(left=0.06, right=1, top=1 - top / height, bottom=0)
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    figure.text(0.06, 0.995, "\n".join(lines), weight="bold", size=11, va="top")
    if panel.kinds is not None:
        labels = [names[i] if i < len(names) else f"class {i}" for i in range(len(panel.kinds))]
        colours = [tuple(colour / 255) for colour in panel.kinds]
        _legend(figure, labels, colours, (0.53, -0.05 / height))
    pictures.save(figure, path)


def _legend(
    figure: Figure,
    names: Sequence[str],
    colours: Sequence[ColorType],
    place: tuple[float, float],
) -> None:
    """Draw a row of class colours below a figure."""
    patches = [Patch(color=colour) for colour in colours]
    columns = min(len(names), 6)
    figure.legend(patches, list(names), loc="upper center", bbox_to_anchor=place, ncols=columns)


def project_to_colour(features: Sequence[Array]) -> list[Array]:
    """Return (h, w, 3) in 0..1 for each (D, h, w): the first three principal components."""
    rows = [f.reshape(len(f), -1).T for f in features]
    stacked = np.concatenate(rows).astype(np.float64)
    stacked /= np.linalg.norm(stacked, axis=1, keepdims=True) + 1e-9
    centred = stacked - stacked.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :3]
    # The sign of an eigenvector is arbitrary; the largest entry positive makes it repeatable.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(axes.shape[1])])
    values = centred @ axes
    low, high = np.percentile(values, [2, 98], axis=0)
    values = np.clip((values - low) / np.maximum(high - low, 1e-9), 0, 1)
    parts = np.split(values, np.cumsum([len(r) for r in rows])[:-1])
    return [p.reshape(*f.shape[1:], -1) for p, f in zip(parts, features, strict=True)]


def _smooth_line(axis: Axes, x: Array, y: Array) -> None:
    """Draw a noisy curve faintly and its running mean on top."""
    window = max(1, len(y) // 50)
    axis.plot(x, y, color=pictures.SERIES[0], alpha=0.25, lw=0.8)
    if len(y) >= 3 * window:
        kernel = np.ones(window) / window
        smooth = np.convolve(y, kernel, mode="valid")
        start = (window - 1) // 2
        axis.plot(x[start : start + len(smooth)], smooth, color=pictures.SERIES[0], lw=1.6)


def _displayed(view: Array) -> Array:
    return view[0] if len(view) == 1 else np.moveaxis(view, 0, 2)
