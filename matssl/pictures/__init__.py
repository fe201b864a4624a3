"""Arrays to PNG files that one can put on a slide."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from matssl.core.run_folder import atomic_path

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
        "axes.prop_cycle": cycler(color=SERIES),
    }
)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    import matplotlib.pyplot as plt

    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, bbox_inches="tight", format="png")
    plt.close(figure)
