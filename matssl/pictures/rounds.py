"""Scores of the models of a loop, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from matssl import pictures


class Point(NamedTuple):
    """A model.

    Attributes:
        name: its number.
        labels: masks that it learned from; 0 where nobody knows.
        score: in per cent.
        ends: of its interval, in per cent; None where there is none.
        promoted: whether it became the best.
    """

    name: str
    labels: int
    score: float
    ends: tuple[float, float] | None
    promoted: bool


def draw(points: Sequence[Point], path: Path) -> None:
    """Draw the score of each model; those that became the best are joined.

    Args:
        points: in the order of their numbers.
        path: PNG file.
    """
    if pictures.blank(path):
        return
    figure, axis = plt.subplots(figsize=(max(4.4, 1.2 + 0.7 * len(points)), 3.2))
    colour, other = pictures.SERIES[0], pictures.FAINT
    best = [(i, p.score) for i, p in enumerate(points) if p.promoted]
    axis.plot([i for i, _ in best], [s for _, s in best], color=colour, lw=1.6, zorder=1)
    for place, point in enumerate(points):
        own = colour if point.promoted else other
        if point.ends is not None:
            axis.plot([place, place], point.ends, color=own, lw=1.2, zorder=2)
        face = own if point.promoted else "white"
        axis.plot(place, point.score, "o", color=own, mfc=face, ms=6, zorder=3)
    labels = [f"{p.name}\n{p.labels or '?'} masks" for p in points]
    axis.set_xticks(range(len(points)), labels)
    axis.set_xlim(-0.5, len(points) - 0.5)
    known = any(point.ends is not None for point in points)
    axis.set_ylabel(f"validation mIoU (%){', 95 % interval' if known else ''}")
    axis.set_title("Models: filled where promoted")
    pictures.save(figure, path)
