"""How often pixels are right of which a model is so sure: the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from matssl import pictures
from matssl.core.arrays import Array

# Bins with fewer pixels say little; their points are drawn open.
FEW = 0.005


def plot(curves: Mapping[str, Array], path: Path) -> None:
    """Draw the share of right pixels over the probability of the chosen class.

    Below it, how many pixels have such a probability.

    Args:
        curves: by name, one row a bin: mean probability, share of right pixels, share of all
            pixels; each between 0 and 1.
        path: PNG file.
    """
    layout = {"height_ratios": (3, 1), "hspace": 0.08}
    if pictures.blank(path):
        return
    figure, (above, below) = plt.subplots(2, 1, figsize=(4.2, 4.6), sharex=True, gridspec_kw=layout)
    above.plot([0, 100], [0, 100], color=pictures.FAINT, lw=1, ls="--", zorder=1)
    for (name, points), colour in zip(curves.items(), pictures.SERIES, strict=False):
        sure, right, share = 100 * points.T
        above.plot(sure, right, color=colour, lw=1.4, label=name, zorder=2)
        many = share >= 100 * FEW
        above.scatter(sure[many], right[many], s=18, color=colour, zorder=3)
        above.scatter(
            sure[~many], right[~many], s=18, facecolor="white", edgecolor=colour, zorder=3
        )
        below.plot(sure, share, color=colour, lw=1.2, marker=".", ms=4)
    above.set_ylim(0, 102)
    above.set_xlim(0, 102)
    above.set_ylabel("right pixels, %")
    above.set_title("is it right as often as it says?")
    if len(curves) > 1:
        above.legend(fontsize=8, loc="upper left")
    below.set_ylim(bottom=0)
    below.yaxis.set_major_locator(MaxNLocator(3))
    below.set_ylabel("pixels, %")
    below.set_xlabel("probability of the chosen class, %")
    pictures.save(figure, path)
