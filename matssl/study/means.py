"""Means over independent data sets, and gains over several baselines for sets and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from matssl.core.tables import percent
from matssl.core.wording import counted
from matssl.measure import intervals
from matssl.study.cells import Cell, difference
from matssl.study.plan import Plan

# Points that a set may lose: it is named where the whole of its interval lies below.
LOSS = 0.01


@dataclass(frozen=True)
class Gain:
    """What an arm gains over a baseline.

    Attributes:
        sets: data sets on which both have a common seed.
        runs: pairs of runs of them.
        value: mean over the sets of their means.
        half: half width of its 95 % interval over sets and seeds; NaN of one set.
        lost: sets whose own interval lies wholly below -LOSS.
        judged: sets with an interval, of two seeds or more.
    """

    sets: int
    runs: int
    value: float
    half: float
    lost: tuple[str, ...]
    judged: int


@dataclass(frozen=True)
class Mean:
    """An arm over all independent sets.

    Attributes:
        variant: of the settings.
        labels: as the study says them.
        arm: its name.
        miou: mean over the sets of their means, 0 to 1.
        images: labelled images, mean over the sets.
        sets: how many of them are done.
        runs: over all their seeds.
        gains: by baseline, without itself and without what has no pair yet.
    """

    variant: str
    labels: str
    arm: str
    miou: float
    images: float
    sets: int
    runs: int
    gains: Mapping[str, Gain]


def means(plan: Plan, rows: Sequence[Cell]) -> list[Mean]:
    """Return the means over the independent sets in the order of the plan, of what is done.

    Args:
        plan: the study; without independent sets there are none.
        rows: of the table of single sets.
    """
    found = []
    for variant, labels in itertools.product(plan.variants, plan.labels):
        arms: dict[str, dict[str, Cell]] = {start.name: {} for start in plan.starts}
        for row in rows:
            if (row.variant, row.labels) == (variant, labels) and row.dataset in plan.independent:
                arms[row.start][row.dataset] = row
        for arm, own in arms.items():
            if own:
                each = own.values()
                gains = {
                    name: gained
                    for name in plan.baselines
                    if name != arm
                    and (gained := gain(name, arms[name], own, plan.seeds)) is not None
                }
                miou = float(np.mean([row.mean for row in each]))
                images = float(np.mean([row.images for row in each]))
                runs = sum(len(row.miou) for row in each)
                found.append(Mean(variant, labels, arm, miou, images, len(own), runs, gains))
    return found


def gain(
    name: str, baseline: Mapping[str, Cell], arm: Mapping[str, Cell], seeds: Sequence[int]
) -> Gain | None:
    """Return what an arm gains over a baseline, paired by set and seed; None without a pair.

    Args:
        name: of the baseline.
        baseline: its rows by data set.
        arm: the same of the arm.
        seeds: of the study.
    """
    table, lost, judged = [], [], 0
    for dataset, row in arm.items():
        if name not in row.gains:
            continue
        other = baseline[dataset]
        value, half = row.gains[name]
        judged += not np.isnan(half)
        if value + half < -LOSS:
            lost.append(dataset)
        common = row.miou.keys() & other.miou.keys()
        table.append([row.miou[s] - other.miou[s] if s in common else np.nan for s in seeds])
    if not table:
        return None
    over = intervals.over_sets_and_seeds(np.array(table))
    runs = int(np.isfinite(table).sum())
    return Gain(len(table), runs, over.value, over.half_width, tuple(lost), judged)


def markdown(plan: Plan, rows: Sequence[Mean]) -> str:
    """Return a table for each variant and number of labels; nothing where there is no mean."""
    parts = []
    for variant, labels in itertools.product(plan.variants, plan.labels):
        own = [row for row in rows if (row.variant, row.labels) == (variant, labels)]
        if own:
            told = f", {variant}" if len(plan.variants) > 1 else ""
            images = "all labelled images" if labels == "all" else f"labelled images: {labels}"
            parts.append(f"### Mean over independent sets, {images}{told}\n\n{_table(plan, own)}")
    if not parts:
        return ""
    sets = ", ".join(plan.independent)
    rule = (
        f"Independent sets: {sets}. A mean is that of the sets' means; gains are in points, paired "
        "by set and seed, with a 95 % interval for other sets and other seeds (the variance over "
        "sets and that over seeds, Student's t with Welch's degrees of freedom)."
    )
    runs = {max(1, len(start.seeds)) for start in plan.starts if start.run and not start.guided}
    if 1 in runs and len(plan.seeds) > 1:
        rule += " One pretraining run is behind all seeds of an arm: its own spread is not in it."
    elif runs and min(runs) < len(plan.seeds):
        rule += (
            f" {min(runs)} pretraining runs are behind the {len(plan.seeds)} seeds of an arm, "
            "which count as independent."
        )
    return "\n\n".join([*parts, rule])


def _table(plan: Plan, rows: Sequence[Mean]) -> str:
    head = ["arm", "mIoU %", "sets", "runs", *(f"over {name}" for name in plan.baselines)]
    head.append("sets below -1 for sure")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    whole = len(plan.independent)
    for row in rows:
        cells = [row.arm, percent(row.miou), f"{row.sets} of {whole}", str(row.runs)]
        for name in plan.baselines:
            found = row.gains.get(name)
            text = "" if found is None else difference(found.value, found.half)
            if found is not None and found.sets < whole:
                text += f" ({counted(found.sets, 'set')})"
            cells.append(text)
        lines.append("| " + " | ".join([*cells, _lost(row, whole)]) + " |")
    return "\n".join(lines)


def _lost(row: Mean, whole: int) -> str:
    """Return the sets that an arm makes worse for sure, and where too few seeds tell."""
    told = []
    for name, found in row.gains.items():
        if found.lost:
            told.append(f"{', '.join(found.lost)} (over {name})")
    judged = min((found.judged for found in row.gains.values()), default=whole)
    if judged < whole:
        told.append(f"{judged} of {whole} sets judged")
    return "; ".join(told) or ("none" if row.gains else "")
