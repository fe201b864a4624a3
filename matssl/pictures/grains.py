"""Pictures of grain size: boundaries and test figures on the micrograph, rose, distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from matssl import pictures
from matssl.core.arrays import Array, percentiles
from matssl.core.run_folder import atomic_write_bytes
from matssl.pictures.objects import with_bar

# Shortest and longest side of an overlay in its own pixels.
DRAWN = 1600
BORDER, CUT, TEST = (255, 130, 20), (40, 120, 255), (0, 190, 160)
# Test lines of each direction that are shown.
LINES = 3
MOST_CURVES = 6
# Anisotropy index from which on grains have a direction.
CLEAR = 1.1


def overlay(
    micrograph: Array | None,
    labels: NDArray[np.int32],
    boundary: NDArray[np.bool_],
    radii: Sequence[float],
    path: Path,
    pixel_size: float | None = None,
) -> None:
    """Draw grains on the micrograph: boundaries, cut grains, some test lines, test circles.

    Args:
        micrograph: grey levels (H, W); None draws on white.
        labels: number of each pixel's grain, 0 where it counts nowhere, (H, W).
        boundary: pixels that were drawn as boundary, (H, W).
        radii: of test circles, in pixels of the field; drawn about its middle.
        path: PNG file.
        pixel_size: nm; draws a scale bar.
    """
    height, width = labels.shape
    if not height or not width:
        return
    factor = min(DRAWN / max(height, width), 4.0)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    canvas = _ground(micrograph, labels, size)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    large = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    cut = np.isin(large, edge[edge > 0])
    canvas[cut] = (0.82 * canvas[cut] + 0.18 * np.array(CUT)).astype(np.uint8)
    drawn = cv2.resize(boundary.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    canvas[drawn] = (0.65 * canvas[drawn] + 0.35 * np.array(BORDER)).astype(np.uint8)
    meets = np.zeros(large.shape, np.uint8)
    meets[:-1] |= large[:-1] != large[1:]
    meets[:, :-1] |= large[:, :-1] != large[:, 1:]
    canvas[cv2.dilate(meets, np.ones((2, 2), np.uint8)) > 0] = BORDER
    _figures(canvas, [radius * factor for radius in radii])
    canvas = with_bar(canvas, None if pixel_size is None else pixel_size / factor)
    image = cv2.imencode(".png", canvas[..., ::-1])[1]
    atomic_write_bytes(path, image.tobytes())


def _ground(
    micrograph: Array | None, labels: NDArray[np.int32], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return what is drawn upon, RGB."""
    if micrograph is None or micrograph.shape[:2] != labels.shape:
        grey = np.where(labels > 0, 245, 200).astype(np.uint8)
    else:
        low, high = percentiles(micrograph, (0.5, 99.5))
        scaled = (micrograph.astype(np.float32) - low) / max(high - low, 1e-6)
        grey = np.rint(255 * scaled.clip(0, 1)).astype(np.uint8)
    smaller = size[0] < labels.shape[1]
    grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    return np.repeat(grey[..., None], 3, axis=2)


def _figures(canvas: NDArray[np.uint8], radii: Sequence[float]) -> None:
    """Draw some of the test lines, and circles about the middle."""
    height, width = canvas.shape[:2]
    for radius in radii:
        cv2.circle(canvas, (width // 2, height // 2), round(radius), TEST, 2, cv2.LINE_AA)
    for number in range(1, LINES + 1):
        row, column = number * height // (LINES + 1), number * width // (LINES + 1)
        cv2.line(canvas, (0, row), (width - 1, row), TEST, 1, cv2.LINE_AA)
        cv2.line(canvas, (column, 0), (column, height - 1), TEST, 1, cv2.LINE_AA)
    for start in (0, width - 1):
        step = 1 if start == 0 else -1
        reach = min(height, width) - 1
        ends = (start, height - 1), (start + step * reach, height - 1 - reach)
        cv2.line(canvas, *ends, TEST, 1, cv2.LINE_AA)


def rose(
    found: Mapping[str, tuple[Mapping[float, float], float | None, float | None]],
    path: Path,
    unit: str,
) -> None:
    """Draw mean intercepts by direction.

    Args:
        found: by specimen: mean intercept by direction in degrees, direction of the long axis,
            anisotropy index.
        path: PNG file.
        unit: of lengths.
    """
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(figsize=(4.8, 4.8), subplot_kw={"projection": "polar"})
    for (name, (lengths, axis, index)), colour in zip(
        list(found.items())[:MOST_CURVES], pictures.SERIES, strict=False
    ):
        degrees = sorted(d for d, v in lengths.items() if np.isfinite(v))
        if not degrees:
            continue
        turns = np.radians([*degrees, *(d + 180 for d in degrees), degrees[0]])
        values = [lengths[d] for d in degrees]
        told = pictures.legible(name, 30)
        shown = index is not None and axis is not None and index >= CLEAR
        if shown:
            told += f": {index:.2f} along {axis:.0f}°"
        axes.plot(turns, [*values, *values, values[0]], marker="o", ms=3, color=colour, label=told)
        if shown and axis is not None:
            ends = np.radians([axis, axis + 180])
            axes.plot(ends, [max(values)] * 2, color=colour, lw=1, ls="--")
    axes.set_ylim(bottom=0)
    axes.set_title(f"Mean intercept by direction ({unit})", pad=18)
    handles = axes.get_legend_handles_labels()[0]
    if handles:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize=8)
    pictures.save(figure, path)


def histogram(
    diameters: NDArray[np.float64], weights: NDArray[np.float64], path: Path, unit: str
) -> None:
    """Draw the distribution of grain diameters by number and by area.

    Args:
        diameters: of circles of equal area.
        weights: of the grains.
        path: PNG file.
        unit: of lengths.
    """
    if pictures.blank(path):
        return
    figure, axes = plt.subplots(figsize=(6.2, 3.6))
    count = int(np.clip(np.sqrt(len(diameters)), 5, 30))
    edges = np.linspace(0, float(diameters.max()) * 1.0001, count + 1)
    heights = np.histogram(diameters, edges, weights=weights)[0] / weights.sum() * 100
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color="#c9d6e2", edgecolor="white")
    axes.set_xlabel(f"grain diameter, circle of equal area ({unit})")
    axes.set_ylabel("grains (%)")
    other = axes.twinx()
    order = np.argsort(diameters)
    for power, name, colour in ((0, "by number", pictures.SERIES[0]), (2, "by area", "#d55e00")):
        mass = np.cumsum(weights[order] * diameters[order] ** power)
        other.plot(diameters[order], 100 * mass / mass[-1], color=colour, label=name)
    other.set_ylim(0, 100)
    other.set_ylabel("cumulative (%)")
    other.grid(False)
    other.legend(loc="center right", fontsize=8)
    axes.set_title(f"Sizes of {len(diameters):,} whole grains")
    pictures.save(figure, path)
