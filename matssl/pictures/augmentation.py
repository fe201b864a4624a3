"""What an augmentation makes of training crops: a sheet of them with outlines of their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from matssl import pictures
from matssl.core.arrays import Array
from matssl.core.labels import IGNORE

# Inches; pixels of a crop as it is drawn.
CELL, SPACE, LABEL, TOP = 1.7, 0.05, 0.3, 0.62
DRAWN = 256
LINE, UNLABELLED = (255, 214, 0), (200, 30, 40)
# Share of the red that lies over what has no label.
TINT = 0.35


@dataclass(frozen=True)
class Row:
    """Crops of one image.

    Attributes:
        name: of the image.
        cells: picture uint8 (S, S) or (S, S, C) and labels uint8 (S, S) of each; the first one is
            as it was.
    """

    name: str
    cells: tuple[tuple[Array, NDArray[np.uint8]], ...]


def sheet(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the sheet as PNG, atomically: a row for each image, the crop as it was on the left.

    Args:
        rows: images, at least one.
        path: PNG file.
        title: above it.
    """
    columns = max(len(row.cells) for row in rows)
    step = CELL + SPACE
    width, height = LABEL + columns * step, TOP + len(rows) * (step + 0.18)
    if pictures.blank(path):
        return
    figure = plt.figure(figsize=(width, height))
    for number, row in enumerate(rows):
        bottom = height - TOP - number * (step + 0.18) - CELL
        for column, (picture, labels) in enumerate(row.cells):
            x = LABEL + column * step + (SPACE if column else 0)
            axis = figure.add_axes((x / width, bottom / height, CELL / width, CELL / height))
            axis.imshow(drawn(picture, labels), interpolation="nearest")
            axis.axis("off")
        name = pictures.legible(row.name, 60)
        figure.text(LABEL / width, (bottom - 0.02) / height, name, va="top", size=7)
    figure.text(LABEL / width, 1 - 0.06 / height, title, weight="bold", size=11, va="top")
    said = "left: as it was; yellow: where classes meet; red: not labelled, so not learned from"
    figure.text(LABEL / width, 1 - 0.34 / height, said, size=8, va="top")
    pictures.save(figure, path)


def drawn(picture: Array, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a crop as the sheet shows it, RGB uint8 (256, 256, 3)."""
    colour = picture if picture.ndim == 3 and picture.shape[2] == 3 else None
    grey = picture if picture.ndim == 2 else picture[..., picture.shape[2] // 2]
    shape = (DRAWN, DRAWN)
    small = cv2.resize(grey if colour is None else colour, shape, interpolation=cv2.INTER_AREA)
    shown = np.repeat(small[..., None], 3, axis=2) if small.ndim == 2 else small.copy()
    classes = cv2.resize(labels, shape, interpolation=cv2.INTER_NEAREST_EXACT)
    outside = classes == IGNORE
    tinted = (1 - TINT) * shown[outside] + TINT * np.array(UNLABELLED)
    shown[outside] = np.rint(tinted).astype(np.uint8)
    meets = np.zeros(classes.shape, bool)
    meets[:-1] |= classes[:-1] != classes[1:]
    meets[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    shown[meets] = LINE
    return shown.astype(np.uint8)
