"""Pictures of defects: outlines on the micrograph, truth below prediction, histogram of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from matssl import pictures
from matssl.core.arrays import Array
from matssl.core.run_folder import atomic_write_bytes

GREEN, VIOLET = "#009e73", "#c800c8"


def ground(grey: Array | None, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Return what outlines are drawn upon, B G R: the micrograph as 8 bits, or black."""
    if grey is None:
        return np.zeros((*shape, 3), np.uint8)
    if grey.dtype != np.uint8:
        grey = pictures.stretched(grey, every=1)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), np.uint8)


def write(canvas: NDArray[np.uint8], path: Path) -> None:
    """Write a picture in B, G, R as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, cv2.imencode(".png", canvas)[1].tobytes())


def histogram(
    edges: NDArray[np.float64],
    counts: Sequence[tuple[str, NDArray[np.int64]]],
    beyond: str,
    path: Path,
) -> None:
    """Draw how many defects each bin of sizes holds, prediction beside truth.

    Args:
        edges: of the bins, nm (B + 1,).
        counts: name and counts (B,) of each series; the last one is the prediction.
        beyond: how many lie outside, in words; "" for none.
        path: PNG file.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(5.4, 3.4))
    width = np.diff(edges) / len(counts)
    for place, (name, own) in enumerate(counts):
        left = edges[:-1] + place * width
        colour = VIOLET if place == len(counts) - 1 else GREEN
        axis.bar(
            left, own, width, align="edge", color=colour, label=name, edgecolor="white", lw=0.4
        )
    axis.set_axisbelow(True)
    axis.set_xlim(edges[0], edges[-1])
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("defect size (nm)")
    axis.set_ylabel("defects")
    axis.set_title(f"defect sizes{f'; {beyond}' if beyond else ''}")
    axis.legend(fontsize=8)
    pictures.save(figure, path)
