"""Pictures of layers and cracks: edges, normals, the thinnest and the thickest place; profiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from matssl import pictures
from matssl.core import palette
from matssl.core.arrays import Array
from matssl.core.run_folder import atomic_write_bytes
from matssl.pictures.objects import with_bar

# B, G, R.
EDGE, NORMAL, THINNEST, THICKEST, CRACK = (
    (255, 200, 0),
    (200, 200, 200),
    (60, 60, 255),
    (60, 200, 60),
    (0, 220, 255),
)
# Normals drawn along a layer, profiles in a figure.
NORMALS, PROFILES = 24, 12


def overlay(
    grey: Array | None,
    shape: tuple[int, int],
    edges: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    cracks: Sequence[Sequence[NDArray[np.float64]]],
    path: Path,
    pixel_size: float | None = None,
) -> None:
    """Write a field with what was measured on it.

    Args:
        grey: the micrograph (H, W); None draws on grey.
        shape: of the field.
        edges: of each layer both edges, (N, 2) as x, y, the ends of the same normals.
        cracks: middle lines of each crack, (N, 2).
        path: PNG file.
        pixel_size: nm; draws a scale bar.
    """
    shown = np.full(shape, 110, np.uint8) if grey is None else pictures.stretched(grey)
    canvas = np.repeat(shown[..., None], 3, axis=2)
    thick = max(1, round(max(shape) / 700))
    for first, second in edges:
        for place in np.linspace(0, len(first) - 1, min(NORMALS, len(first))).astype(int):
            _line(canvas, np.array([first[place], second[place]]), NORMAL, 1)
        for side in (first, second):
            _line(canvas, side, EDGE, thick)
        gaps = np.hypot(*(second - first).T)
        for place, colour in ((int(gaps.argmin()), THINNEST), (int(gaps.argmax()), THICKEST)):
            _line(canvas, np.array([first[place], second[place]]), colour, 2 * thick)
    for crack in cracks:
        for part in crack:
            _line(canvas, part, CRACK, thick)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = with_bar(canvas, pixel_size)
    atomic_write_bytes(path, cv2.imencode(".png", canvas)[1].tobytes())


def profiles(
    lines: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]], unit: str, path: Path
) -> None:
    """Draw thickness along the layer, a line a field.

    Args:
        lines: name, place along the layer and thickness (N,) of each; the first ones are drawn.
        unit: of both.
        path: PNG file.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(7.2, 3.4))
    shown = lines[:PROFILES]
    colours = palette.distinct(len(shown)) / 255
    for (name, place, thickness), colour in zip(shown, colours, strict=True):
        axis.plot(place, thickness, lw=1.1, label=pictures.legible(name, 36), color=colour)
    axis.set_ylim(0, None)
    axis.set_xlabel(f"along the layer ({unit})")
    axis.set_ylabel(f"thickness ({unit})")
    more = f", the first {PROFILES} of {len(lines)}" if len(lines) > PROFILES else ""
    axis.set_title(f"thickness along its normal, a line a field{more}")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    pictures.save(figure, path)


def _line(
    canvas: NDArray[np.uint8],
    points: NDArray[np.float64],
    colour: tuple[int, int, int],
    thick: int,
) -> None:
    """Draw a line through points (x, y); a gap in it, where normals were left out, stays one."""
    fine = np.rint(points * 8).astype(np.int32)
    parts = [fine]
    if len(points) > 2:
        jumps = np.flatnonzero(np.hypot(*np.diff(points, axis=0).T) > 40) + 1
        parts = np.split(fine, jumps)
    for part in parts:
        cv2.polylines(canvas, [part.reshape(-1, 1, 2)], False, colour, thick, cv2.LINE_AA, 3)
