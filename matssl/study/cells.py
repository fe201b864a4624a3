"""The seeds of an arm on a data set: scores, spread, and the gain over another arm."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from matssl.measure import intervals
from matssl.study.plan import Job, Plan


@dataclass(frozen=True)
class Cell:
    """All seeds of one start on one data set with one number of labels.

    Attributes:
        dataset: with the test split where there are several.
        variant: of the settings.
        labels: as the study says them.
        images: labelled images that were trained on.
        start: name.
        miou: by seed, 0 to 1.
        others: further scores by column, each by seed.
        gains: mean paired difference from each baseline but itself, where they share a seed, and
            half width of its 95 % interval, NaN with one common seed.
        draws: different sets of labelled images among the seeds; None where that was not kept.
    """

    dataset: str
    variant: str
    labels: str
    images: int
    start: str
    miou: Mapping[int, float]
    others: Mapping[str, Mapping[int, float]]
    gains: Mapping[str, tuple[float, float]]
    draws: int | None = None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(list(self.miou.values())))

    @property
    def std(self) -> float:
        """Sample standard deviation over the seeds; NaN with one."""
        return float(np.std(list(self.miou.values()), ddof=1)) if len(self.miou) > 1 else np.nan


def cells(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
    """Return the table's rows in the order of the plan.

    Args:
        plan: the study.
        results: by job name: ``miou`` by test split, ``images``.
    """
    rows = []
    for dataset, variant, labels in itertools.product(plan.datasets, plan.variants, plan.labels):
        for test, label in plan.rows(dataset).items():
            scores: dict[str, dict[int, float]] = {}
            images = 0
            for start in plan.starts:
                scores[start.name] = {}
                for seed in plan.seeds:
                    found = results.get(Job(start, dataset, variant, labels, seed).name)
                    if found is not None and test in found["miou"]:
                        scores[start.name][seed] = float(found["miou"][test])
                        images = int(found["images"])
            for start in plan.starts:
                if not scores[start.name]:
                    continue
                own = scores[start.name]
                gains = {
                    name: _paired(scores[name], own)
                    for name in plan.baselines
                    if name != start.name and own.keys() & scores[name].keys()
                }
                names = {seed: Job(start, dataset, variant, labels, seed).name for seed in own}
                others = {
                    column: {
                        seed: float(found["scores"][test][column])
                        for seed, name in names.items()
                        if column in (found := results[name]).get("scores", {}).get(test, {})
                    }
                    for column in plan.columns
                }
                drawn = [results[name].get("drawn") for name in names.values()]
                draws = None if None in drawn else len({frozenset(d) for d in drawn if d})
                rows.append(
                    Cell(label, variant, labels, images, start.name, own, others, gains, draws)
                )
    return rows


def _paired(first: Mapping[int, float], second: Mapping[int, float]) -> tuple[float, float]:
    """Return the mean of second minus first over their common seeds, and its half width.

    Args:
        first: by seed; one at least is common to both.
        second: by seed.
    """
    common = sorted(first.keys() & second.keys())
    return intervals.paired([first[seed] for seed in common], [second[seed] for seed in common])


def difference(value: float, half: float) -> str:
    """Return a difference of shares with its interval in per cent, without where that is NaN."""
    value, half = 100 * value, 100 * half
    if np.isnan(half):
        return f"{value:+.1f}"
    return f"{value:+.1f} [{value - half:+.1f}, {value + half:+.1f}]"
