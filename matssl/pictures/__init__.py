"""Arrays to PNG files that one can put on a slide."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.run_folder import atomic_path, atomic_write_bytes
from matssl.core.wording import cut

# Pictures are files; a window would need a screen.
matplotlib.use("Agg")

DPI = 150
INK, FAINT = "#1f2933", "#9aa5b1"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.grid": True,
        "grid.color": "#e4e7eb",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "figure.facecolor": "white",
        # A dollar sign in the name of a file or a class is no formula.
        "text.parse_math": False,
        "axes.prop_cycle": cycler(color=SERIES),
    }
)


def legible(name: str, most: int = 100) -> str:
    """Return the name of a file or class as a picture can show it: one line, no stray bytes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    # Legends leave out what begins with an underscore.
    return cut(f" {text}" if text.startswith("_") else text, most)


# A white pixel as PNG (RFC 2083): what stands for a picture that nobody will look at.
BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)
_undrawn = False


@contextmanager
def undrawn() -> Iterator[None]:
    """Let pictures made inside the block be a white pixel: drawing may take longer than the run."""
    global _undrawn
    before, _undrawn = _undrawn, True
    try:
        yield
    finally:
        _undrawn = before


def blank(path: Path) -> bool:
    """Return whether nothing is drawn now; then the white pixel is written to ``path``."""
    if _undrawn:
        atomic_write_bytes(path, BLANK)
    return _undrawn


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    import matplotlib.pyplot as plt

    if blank(path):
        plt.close(figure)
        return
    with atomic_path(path) as temporary, warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box, which says as much.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        figure.savefig(temporary, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)


def stretched(grey: Array, every: int = 4) -> NDArray[np.uint8]:
    """Return grey levels of any depth as 8 bits, the lowest and highest half per cent cut off.

    Args:
        grey: (H, W).
        every: row and column that the levels are taken from.
    """
    low, high = np.percentile(grey[::every, ::every], [0.5, 99.5])
    scaled = (grey.astype(np.float32) - low) * (255 / max(float(high - low), 1e-9))
    return np.clip(scaled, 0, 255).astype(np.uint8)
