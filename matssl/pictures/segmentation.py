"""Pictures of a segmentation: panels, overlays, masks in colour, confusion matrices."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import NDArray

from matssl import pictures
from matssl.core import palette
from matssl.core.arrays import Array, strips
from matssl.core.labels import IGNORE

RIGHT, WRONG = (225, 230, 235), (200, 30, 40)
# Layout of a panel; images this much wider than high stand one below the other.
TOTAL_INCHES, HEAD_INCHES, LINE_INCHES, GAP_INCHES = 12.4, 0.27, 0.24, 0.12
WIDE = 2.5
# Room for the words above a picture that is narrower; about a letter of a scale bar.
LABEL_INCHES, LETTER_INCHES = 2.05, 0.085
# Longest side of a micrograph in a panel, in pixels; what is larger is drawn smaller.
MOST_DRAWN = 2048
# Characters of a class name in a picture.
LABEL = 48


def legible(names: Sequence[str], most: int = LABEL) -> list[str]:
    """Return names as a legend can show them."""
    return [pictures.legible(name, most) for name in names]


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Return one RGB colour per class, the clearest first."""
    return [tuple(colour) for colour in palette.distinct(count).tolist()]


def colour_names(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each class as "#rrggbb"."""
    colours = class_colours(len(names))
    return {name: _hex(colour) for name, colour in zip(names, colours, strict=True)}


def overlay(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], count: int, alpha: float = 0.45
) -> NDArray[np.uint8]:
    """Return the micrograph tinted with the classes, RGB (H, W, 3)."""
    gray = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    mixed = (1 - alpha) * gray + alpha * palette.colour_mask(mask, count)
    return np.rint(mixed).astype(np.uint8)


def outlined(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the picture, RGB (H, W, 3), with a white line of one pixel where classes meet."""
    meets = np.zeros(mask.shape, bool)
    meets[:-1] |= mask[:-1] != mask[1:]
    meets[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    result = picture.copy()
    result[meets] = 255
    return result


def error_map(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return RGB (H, W, 3): right pixels pale, wrong ones red, ignored ones grey."""
    result = np.empty((*truth.shape, 3), np.uint8)
    result[:] = RIGHT
    result[(truth != prediction)] = WRONG
    result[truth == IGNORE] = palette.IGNORED
    return result


def panel(
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    prediction: NDArray[np.uint8],
    names: Sequence[str],
    path: Path,
    title: str,
    pixel_size: float | None = None,
    predicted: str = "prediction",
) -> None:
    """Write one picture: micrograph, truth, prediction and where they differ.

    Args:
        image: uint8 (H, W) or (H, W, 3).
        truth: class indices, None where there is no mask; then micrograph, prediction, overlay.
        prediction: class indices.
        names: of the classes, for the legend.
        path: PNG file.
        title: above the panel.
        pixel_size: nm; draws a scale bar on the micrograph.
        predicted: what stands above the prediction.
    """
    if pictures.blank(path):
        return
    count = len(names)
    wrong = float("nan") if truth is None else _wrong_share(truth, prediction)
    factor = max(image.shape[:2]) / MOST_DRAWN
    if factor > 1:
        image, truth, prediction = _smaller(factor, image, truth, prediction)
        pixel_size = None if pixel_size is None else pixel_size * factor
    names, title = legible(names), pictures.legible(title)
    parts: list[tuple[str, Array]] = [("micrograph", image)]
    if truth is not None:
        parts.append(("truth", palette.colour_mask(truth, count)))
    parts.append((predicted, palette.colour_mask(prediction, count)))
    if truth is not None:
        parts.append((f"errors: {100 * wrong:.1f} % of the pixels", error_map(truth, prediction)))
    else:
        parts.append(("overlay", outlined(overlay(image, prediction, count), prediction)))
    height, width = image.shape[:2]
    columns = len(parts) if width < WIDE * height else 1
    rows = -(-len(parts) // columns)
    # Inches: all of a slide's width for the pictures, but no picture higher than five.
    cell = (TOTAL_INCHES - GAP_INCHES * (columns - 1)) / columns
    cell_height = cell * height / width
    if cell_height > 5:
        cell, cell_height = 5 * width / height, 5.0
    patches = [
        Patch(color=_hex(colour), label=name)
        for colour, name in zip(class_colours(count), names, strict=True)
    ]
    if truth is not None:
        patches.append(Patch(color=_hex(WRONG), label="error"))
    longest = max(len(str(patch.get_label())) for patch in patches)
    legend_columns = max(1, min(len(patches), int(TOTAL_INCHES / (0.5 + 0.075 * longest))))
    legend_height = 0.1 + LINE_INCHES * -(-len(patches) // legend_columns)
    total = HEAD_INCHES + rows * (LINE_INCHES + cell_height + GAP_INCHES) + legend_height
    figure = plt.figure(figsize=(TOTAL_INCHES, total))
    for number, (label, content) in enumerate(parts):
        row, column = divmod(number, columns)
        left = column * (max(cell, LABEL_INCHES) + GAP_INCHES)
        top = HEAD_INCHES + LINE_INCHES + row * (cell_height + LINE_INCHES + GAP_INCHES)
        bottom = total - top - cell_height
        axis = figure.add_axes(
            (left / TOTAL_INCHES, bottom / total, cell / TOTAL_INCHES, cell_height / total)
        )
        axis.imshow(content, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        axis.set_title(label, fontsize=9, fontweight="normal", loc="left", pad=4)
        axis.axis("off")
        if number == 0 and pixel_size is not None:
            _scale_bar(axis, height, width, pixel_size, cell)
    figure.legend(
        handles=patches,
        loc="lower left",
        ncol=legend_columns,
        fontsize=8.5,
        bbox_to_anchor=(0.0, 0.0),
        borderaxespad=0.0,
        borderpad=0.1,
        handlelength=1.1,
        columnspacing=1.4,
    )
    figure.suptitle(title, x=0.0, ha="left", va="top", fontsize=11, fontweight="bold", y=1.0)
    pictures.save(figure, path)


def _wrong_share(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> float:
    """Return the share of wrong pixels among those that are not ignored; NaN where all are."""
    wrong = known = 0
    for rows in strips(len(truth)):
        seen = truth[rows] != IGNORE
        known += int(np.count_nonzero(seen))
        wrong += int(np.count_nonzero((truth[rows] != prediction[rows]) & seen))
    return wrong / known if known else float("nan")


def _smaller(
    factor: float,
    image: NDArray[np.uint8],
    truth: NDArray[np.uint8] | None,
    prediction: NDArray[np.uint8],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint8]]:
    """Return the parts of a panel as many times smaller; a page shows no more of them."""
    size = (max(1, round(image.shape[1] / factor)), max(1, round(image.shape[0] / factor)))
    nearest = [
        None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
        for mask in (truth, prediction)
    ]
    assert nearest[1] is not None
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), nearest[0], nearest[1]


def confusion_plot(counts: NDArray[np.int64], names: Sequence[str], path: Path) -> None:
    """Write the confusion matrix, each row in percent of the true class."""
    names = legible(names)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 1.1 * len(names) + 1.8
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(size, size * 0.85))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    axis.grid(False)
    for i in range(len(names)):
        for j in range(len(names)):
            colour = "white" if share[i, j] > 55 else pictures.INK
            axis.text(j, i, f"{share[i, j]:.1f}", ha="center", va="center", color=colour)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title("% of the true pixels")
    axis.spines[:].set_visible(False)
    pictures.save(figure, path)


def fraction_plot(truth: Array, predicted: Array, names: Sequence[str], path: Path) -> None:
    """Write predicted against true area fraction in %, one point per image and class.

    Args:
        truth: (images, classes), 0 to 1.
        predicted: the same.
        names: of the classes.
        path: PNG file.
    """
    names = legible(names)
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(4.2, 4.0))
    truth, predicted = 100 * truth, 100 * predicted
    top = 1.04 * max(float(np.nanmax(truth)), float(np.nanmax(predicted)), 5.0)
    axis.plot([0, top], [0, top], color=pictures.FAINT, lw=1, ls="--", zorder=1)
    for number, (name, colour) in enumerate(zip(names, class_colours(len(names)), strict=True)):
        axis.scatter(
            truth[:, number],
            predicted[:, number],
            s=26,
            label=name,
            zorder=2,
            color=np.array(colour) / 255,
            edgecolor="white",
            linewidth=0.5,
        )
    axis.set_xlim(0, top)
    axis.set_ylim(0, top)
    axis.set_aspect("equal")
    axis.set_xlabel("true area fraction, %")
    axis.set_ylabel("predicted area fraction, %")
    axis.set_title("phase fraction, one point per image")
    axis.legend(fontsize=8)
    pictures.save(figure, path)


def fraction_bars(
    shares: Array, images: Sequence[str], names: Sequence[str], path: Path, most: int = 40
) -> None:
    """Write the area fractions of each image as one bar.

    Args:
        shares: (images, classes), each row sums to 1.
        images: their names.
        names: of the classes.
        path: PNG file.
        most: bars drawn; of more images some, evenly spread.
    """
    places = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(int))
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(4.6, 0.6 + 0.2 * len(places)))
    left = np.zeros(len(places))
    for number, colour in enumerate(class_colours(len(names))):
        width = 100 * shares[places, number]
        axis.barh(np.arange(len(places)), width, left=left, color=_hex(colour), height=0.82)
        left += width
    labels = _short_names(legible([images[i] for i in places], 200), 24)
    axis.set_yticks(np.arange(len(places)), labels, fontsize=7)
    axis.set_ylim(len(places) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
    axis.set_xlabel("area %")
    patches = [Patch(color=colour) for colour in colour_names(names).values()]
    axis.legend(
        patches,
        legible(names),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=3,
        fontsize=7,
        handlelength=1.2,
    )
    pictures.save(figure, path)


def _before_word(shared: str) -> int:
    """Return the length of a shared beginning without the word it ends in."""
    return len(shared) - len(re.search(r"[^\W_]*$", shared)[0])  # type: ignore[index]


def _short_names(names: Sequence[str], length: int) -> list[str]:
    """Return names without what all of them share, where they are long, then without a middle."""
    if max(map(len, names)) <= length:
        return list(names)
    front = back = 0
    if len(set(names)) > 1:
        # Numbers and words stay whole.
        front = _before_word(os.path.commonprefix(list(names)))
        rests = [name[front:][::-1] for name in names]
        back = _before_word(os.path.commonprefix(rests))
    start, stop = "…" if front else "", "…" if back else ""
    short = [f"{start}{name[front : len(name) - back]}{stop}" for name in names]
    half = length // 2
    return [n if len(n) <= length else f"{n[: half - 1]}…{n[-half:]}" for n in short]


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _scale_bar(axis: Axes, height: int, width: int, pixel_size: float, inches: float) -> None:
    """Draw a bar of round length, about a fifth of the image's width.

    Args:
        axis: with the image.
        height: of the image in pixels.
        width: of the image in pixels.
        pixel_size: nm.
        inches: how wide the image is drawn.
    """
    target = 0.2 * width * pixel_size
    power = 10 ** np.floor(np.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    pixels = length / pixel_size
    unit, scale = ("mm", 1e6) if length >= 1e6 else ("µm", 1e3) if length >= 1e3 else ("nm", 1.0)
    x0, y0 = 0.96 * width - pixels, 0.95 * height
    # A dark rim, since the micrograph below may be as bright as the bar.
    axis.plot(
        [x0, x0 + pixels],
        [y0, y0],
        color="white",
        lw=3.5,
        solid_capstyle="butt",
        path_effects=[Stroke(linewidth=5.5, foreground="black"), Normal()],
    )
    label = f"{length / scale:g} {unit}"
    # A number wider than the image begins at its left edge and goes on beside it.
    fits = LETTER_INCHES * len(label) < 0.96 * inches
    axis.annotate(
        label,
        (x0 + pixels if fits else 0, y0),
        xytext=(0, 4),
        textcoords="offset points",
        color="white",
        ha="right" if fits else "left",
        va="bottom",
        fontsize=8,
        fontweight="bold",
        path_effects=[Stroke(linewidth=2, foreground="black"), Normal()],
    )
