"""Pictures of objects: outlines with numbers on the micrograph, and distributions of sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from matssl import pictures
from matssl.core.arrays import Array, percentiles
from matssl.core.run_folder import atomic_path

# Longest side of an overlay in its own pixels: small fields are drawn larger, big ones smaller.
DRAWN, LARGER = 1600, 8
# So many objects get their number; of more some of the largest, so that numbers hide no objects.
NUMBERED, LARGEST = 200, 60
LETTER, LINE = 17, 2
# Objects below so many drawn pixels get the thinnest line.
FINE = 24
# Outlines must be seen on any grey: brighter than the colours of areas. Cut objects have their own.
BRIGHT = ((0, 220, 255), (255, 225, 0), (255, 90, 210), (120, 255, 70), (190, 150, 255))
CUT = (255, 105, 35)
# Curves of single specimens in one picture.
MOST_CURVES = 12
# Pixels across of a picture that has room for a bar and its length.
SMALLEST_WITH_BAR = 250


@dataclass(frozen=True)
class Outlined:
    """Objects of one class to be drawn.

    Attributes:
        name: of the class.
        labels: int32 (H, W), 1 to N.
        first: number of the first one.
        boxes: left, top, width and height of each, int (N, 4).
        area: of each in pixels, (N,).
        cut: whether it touches an edge, bool (N,).
    """

    name: str
    labels: NDArray[np.int32]
    first: int
    boxes: NDArray[np.int64]
    area: NDArray[np.float64]
    cut: NDArray[np.bool_]


def overlay(
    micrograph: Array | None,
    objects: Sequence[Outlined],
    path: Path,
    title: str,
    pixel_size: float | None = None,
) -> None:
    """Draw the outlines of objects with their numbers on the micrograph.

    Args:
        micrograph: grey levels (H, W); None draws the objects on white.
        objects: by class.
        path: PNG file.
        title: above the picture.
        pixel_size: nm; draws a scale bar.
    """
    height, width = objects[0].labels.shape
    factor = min(DRAWN / max(height, width), LARGER)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = _ground(micrograph, objects, size)
    colours = [BRIGHT[i % len(BRIGHT)] for i in range(len(objects))]
    for one, colour in zip(objects, colours, strict=True):
        _outlines(canvas, one, colour, factor)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    _numbers(draw, objects, factor, size)
    if pixel_size is not None:
        scale_bar(draw, size, pixel_size / factor)
    whole = _with_head(picture, objects, colours, title)
    # Grey and a few colours: a palette loses nothing that one sees, and a page holds several.
    whole = whole.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    with atomic_path(path) as temporary:
        whole.save(temporary, format="PNG", compress_level=4)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _ground(
    micrograph: Array | None, objects: Sequence[Outlined], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return what is drawn upon, RGB."""
    if micrograph is None:
        ground = np.full((*objects[0].labels.shape, 3), 255, np.uint8)
        for one in objects:
            ground[one.labels > 0] = 150
        return cv2.resize(ground, size, interpolation=cv2.INTER_NEAREST)
    smaller = size[0] < micrograph.shape[1]
    drawn = cv2.resize(
        micrograph, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    )
    low, high = percentiles(drawn, (0.5, 99.5))
    grey = (drawn.astype(np.float32) - low) / max(high - low, 1e-6)
    grey = np.rint(255 * grey.clip(0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _outlines(
    canvas: NDArray[np.uint8], one: Outlined, whole: tuple[int, int, int], factor: float
) -> None:
    """Draw the outline of every object, of a cut one in another colour, halves of pixels exact."""
    sides = one.boxes[:, 2:] * factor
    line = 1 if len(sides) and float(np.median(sides)) < FINE else LINE
    for place, (left, top, wide, high) in enumerate(one.boxes.tolist()):
        part = one.labels[top : top + high, left : left + wide] == place + 1
        # Borders lie in the middle of their pixels; a pixel of white around closes them.
        outlines = cv2.findContours(
            part.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(left, top)
        )[0]
        colour = CUT if one.cut[place] else whole
        shifted = [
            np.rint(16 * ((each + 0.5) * factor - 0.5)).astype(np.int32) for each in outlines
        ]
        cv2.polylines(canvas, shifted, True, colour, line, cv2.LINE_AA, shift=4)


def _numbers(
    draw: ImageDraw.ImageDraw,
    objects: Sequence[Outlined],
    factor: float,
    size: tuple[int, int],
) -> None:
    """Write the numbers of the largest objects where none covers another."""
    font = _font(LETTER, bold=True)
    all_ = [(float(one.area[i]), one, i) for one in objects for i in range(len(one.area))]
    taken: list[tuple[float, float, float, float]] = []
    most = len(all_) if len(all_) <= NUMBERED else LARGEST
    for _, one, place in sorted(all_, key=lambda found: -found[0])[:most]:
        text = str(one.first + place)
        at, anchor = _spot(one, place, factor, draw.textbbox((0, 0), text, font, stroke_width=2))
        box = draw.textbbox(at, text, font=font, anchor=anchor, stroke_width=2)
        # No number leaves the picture.
        across = max(0.0, -box[0]) - max(0.0, box[2] - size[0])
        down = max(0.0, -box[1]) - max(0.0, box[3] - size[1])
        at = (at[0] + across, at[1] + down)
        box = draw.textbbox(at, text, font=font, anchor=anchor, stroke_width=2)
        if any(_meet(box, other) for other in taken):
            continue
        taken.append(box)
        draw.text(
            at, text, (255, 255, 255), font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _spot(
    one: Outlined, place: int, factor: float, box: Sequence[float]
) -> tuple[tuple[float, float], str]:
    """Return where the number of an object stands: in it, or beside one that it would cover."""
    left, top, wide, high = one.boxes[place].tolist()
    if wide * factor > 1.15 * (box[2] - box[0]) and high * factor > 1.3 * (box[3] - box[1]):
        x, y = _middle(one, place)
        return ((x + 0.5) * factor, (y + 0.5) * factor), "mm"
    return ((left + wide) * factor + 2, (top + 0.2 * high) * factor), "lm"


def _middle(one: Outlined, place: int) -> tuple[float, float]:
    """Return the pixel of an object that lies deepest in it, from the field's corner."""
    left, top, wide, high = one.boxes[place].tolist()
    part = one.labels[top : top + high, left : left + wide] == place + 1
    depth = cv2.distanceTransform(np.pad(part, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.nonzero(depth >= depth.max() - 0.5)
    middle = np.array([rows.mean(), columns.mean()])
    nearest = np.argmin(np.hypot(rows - middle[0], columns - middle[1]))
    return left + float(columns[nearest]), top + float(rows[nearest])


def _meet(first: Sequence[float], second: Sequence[float]) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def with_bar(canvas: NDArray[np.uint8], pixel: float | None) -> NDArray[np.uint8]:
    """Return a picture with a bar of round length in its corner.

    Args:
        canvas: colours (H, W, 3).
        pixel: nm of one of its pixels; None, and pictures too small for the words, leave it as
            it is.
    """
    if pixel is None or canvas.shape[1] < SMALLEST_WITH_BAR or canvas.shape[0] < 80:
        return canvas
    picture = Image.fromarray(canvas)
    scale_bar(ImageDraw.Draw(picture), picture.size, pixel)
    return np.array(picture)


def scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], pixel: float) -> None:
    """Draw a bar of round length, about a fifth of the width; a drawn pixel is so many nm."""
    target = 0.2 * size[0] * pixel
    power = 10.0 ** math.floor(math.log10(target))
    length = max(step * power for step in (1, 2, 5) if step * power <= target)
    unit, scale = ("mm", 1e6) if length >= 1e6 else ("µm", 1e3) if length >= 1e3 else ("nm", 1.0)
    right, bottom = size[0] - 30, size[1] - 30
    left = right - length / pixel
    draw.rectangle((left - 3, bottom - 11, right + 3, bottom + 3), (0, 0, 0))
    draw.rectangle((left, bottom - 8, right, bottom), (255, 255, 255))
    draw.text(
        ((left + right) / 2, bottom - 16),
        f"{length / scale:g} {unit}",
        (255, 255, 255),
        _font(26, bold=True),
        anchor="ms",
        stroke_width=3,
        stroke_fill=(0, 0, 0),
    )


def _with_head(
    picture: Image.Image,
    objects: Sequence[Outlined],
    colours: Sequence[tuple[int, int, int]],
    title: str,
) -> Image.Image:
    """Return the picture below a title and what the colours of outlines mean."""
    whole = Image.new("RGB", (picture.width, picture.height + 92), "white")
    whole.paste(picture, (0, 92))
    draw = ImageDraw.Draw(whole)
    ink = tuple(bytes.fromhex(pictures.INK[1:]))
    draw.text((2, 6), pictures.legible(title), ink, _font(28, bold=True))
    x, font = 2.0, _font(22)
    keys = [
        (colour, f"{pictures.legible(one.name, 40)}: {len(one.area)}")
        for colour, one in zip(colours, objects, strict=True)
    ]
    cut = sum(int(one.cut.sum()) for one in objects)
    if cut:
        keys.append((CUT, f"of these cut by an edge: {cut}"))
    if sum(len(one.area) for one in objects) > NUMBERED:
        keys.append(((255, 255, 255), f"numbers on the {LARGEST} largest"))
    for colour, text in keys:
        if colour != (255, 255, 255):
            draw.rectangle((x, 60, x + 34, 66), colour)
            x += 44
        draw.text((x, 48), text, ink, font)
        x += draw.textlength(text, font) + 34
    return whole


@dataclass(frozen=True)
class Curve:
    """A distribution of sizes to be drawn.

    Attributes:
        name: of the specimen.
        diameter: sorted, (N,).
        weight: how many each stands for, (N,); those of 0 are left out.
    """

    name: str
    diameter: NDArray[np.float64]
    weight: NDArray[np.float64]


def size_plot(
    together: Curve,
    single: Sequence[Curve],
    edges: NDArray[np.float64],
    path: Path,
    title: str,
    unit: str,
    log: bool,
    words: Sequence[str],
) -> None:
    """Draw the histogram by number, and the cumulative curves by number and by area.

    Args:
        together: all fields.
        single: one of each specimen; drawn thin where there are several.
        edges: of the classes, (K + 1,).
        path: PNG file.
        title: above it.
        unit: of the diameters.
        log: whether the axis of diameters is logarithmic.
        words: lines about it, for its side.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    curve = axis.twinx()
    diameter, weight, share = _steps(together, 0)
    bars = np.histogram(diameter, edges, weights=weight)[0]
    axis.bar(
        *(edges[:-1], 100 * bars / bars.sum(), np.diff(edges)),
        align="edge",
        color="#a9c9e8",
        edgecolor="white",
        linewidth=0.6,
        zorder=2,
    )
    if len(single) > 1:
        for one in single[:MOST_CURVES]:
            own, _, rising = _steps(one, 0)
            curve.step(own, rising, where="post", color=pictures.FAINT, lw=0.8, zorder=3)
        curve.plot([], [], color=pictures.FAINT, lw=0.8, label="single specimens,\nby number")
    curve.step(
        *(diameter, share),
        where="post",
        color=pictures.SERIES[0],
        lw=2.2,
        label="by number",
        zorder=4,
    )
    by_area = _steps(together, 2)
    curve.step(
        *(by_area[0], by_area[2]),
        where="post",
        color=pictures.SERIES[1],
        lw=2.2,
        ls="--",
        label="by area",
        zorder=4,
    )
    curve.set_ylim(0, 103)
    curve.set_ylabel("cumulative (%)")
    curve.spines["right"].set_visible(True)
    curve.grid(False)
    if log:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(edges[0], edges[-1])
    axis.set_axisbelow(True)
    axis.set_xlabel(f"equivalent circle diameter ({unit})")
    axis.set_ylabel("share of the objects in a class (%)")
    axis.set_title(pictures.legible(title), pad=10)
    figure.tight_layout()
    said = "\n".join(map(pictures.legible, words))
    figure.text(1.0, 0.9, said, va="top", ha="left", fontsize=8.5, linespacing=1.6)
    curve.legend(
        *(),
        title="cumulative",
        title_fontsize=8.5,
        alignment="left",
        loc="lower left",
        fontsize=8.5,
        bbox_to_anchor=(0.995, 0.12),
        bbox_transform=figure.transFigure,
        borderpad=0,
        borderaxespad=0,
    )
    pictures.save(figure, path)


def _steps(
    one: Curve, power: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return sorted diameters, their weights, and the cumulative share in per cent."""
    own = one.weight > 0
    order = np.argsort(one.diameter[own], kind="stable")
    diameter, weight = one.diameter[own][order], one.weight[own][order]
    rising = np.cumsum(weight * diameter**power)
    return diameter, weight, 100 * rising / rising[-1]
