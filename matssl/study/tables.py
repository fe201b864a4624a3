"""The table of a study: a row an arm, its spread over seeds and its gain over the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import csv_text, percent
from matssl.core.wording import counted
from matssl.study import means
from matssl.study.cells import Cell, cells, difference
from matssl.study.plan import COLUMNS, Plan


def markdown(plan: Plan, rows: Sequence[Cell]) -> str:
    """Return the table: mean, spread, number of seeds, paired difference with interval."""
    variants = len(plan.variants) > 1
    head = ["data set", "variant", "labelled images", plan.noun, "mIoU %", "seeds"]
    head += [f"over {name}, paired, 95 %" for name in plan.baselines]
    head += [COLUMNS[name] for name in plan.columns]
    if not variants:
        head.remove("variant")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        cells = [row.dataset, row.variant, str(row.images), row.start]
        cells += [_spread(row.miou), _seeds(row)]
        cells += [_gain(row, name) for name in plan.baselines]
        cells += [_spread(row.others[name]) for name in plan.columns]
        if not variants:
            cells.pop(1)
        lines.append("| " + " | ".join(cells) + " |")
    guided = [start.name for start in plan.starts if start.guided]
    if guided:
        lines += ["", f"Pretraining of {', '.join(guided)} saw the labelled images of its draw."]
    return "\n".join(lines)


def write(plan: Plan, results: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write table.md, table.csv, classes.csv and curves.png of what is done; print the table.

    Args:
        plan: the study.
        results: by job name.
        out: folder of the study.

    Raises:
        UserError: nothing is done yet.
    """
    rows = cells(plan, results)
    if not rows:
        raise UserError(f"no job of the study is done yet in {out}")
    over_sets = means.means(plan, rows)
    text = "\n\n".join(filter(None, (markdown(plan, rows), means.markdown(plan, over_sets))))
    done = f"{len(results)} of {len(plan.jobs())} runs done."
    atomic_write_text(out / "table.md", f"{text}\n\n{done}\n")
    lines = csv_text(_lines(plan, results), digits=None)
    atomic_write_text(out / "table.csv", lines)
    classes = _classes(plan, results)
    if classes:
        atomic_write_text(out / "classes.csv", csv_text(classes, digits=None))
    _draw(plan, rows, over_sets, out / "curves.png")
    print(f"\n{text}\n\n{done}", flush=True)
    print(f"table   {out / 'table.md'}\nplot    {out / 'curves.png'}", flush=True)


def _lines(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return one row a job and test split, for other programs."""
    return [
        {
            plan.noun: job.start.name,
            "dataset": job.dataset,
            "variant": job.variant,
            "labels": job.labels,
            "images": found["images"],
            "seed": job.seed,
            "test": test,
            "miou": miou,
            "validation_miou": found["validation"],
            "seconds": found["seconds"],
        }
        for job in plan.jobs()
        if (found := results.get(job.name)) is not None
        for test, miou in found["miou"].items()
    ]


def _classes(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return one row a job, test split and class: its IoU, empty where it is nowhere."""
    return [
        {
            plan.noun: job.start.name,
            "dataset": job.dataset,
            "variant": job.variant,
            "labels": job.labels,
            "seed": job.seed,
            "test": test,
            "class": name,
            "iou": iou,
        }
        for job in plan.jobs()
        for test, classes in results.get(job.name, {}).get("iou", {}).items()
        for name, iou in classes.items()
    ]


def _spread(scores: Mapping[int, float]) -> str:
    """Return mean and sample standard deviation in per cent; nothing without a score."""
    values = np.array(list(scores.values()))
    if len(values) == 0:
        return ""
    return percent(values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan)


def _seeds(row: Cell) -> str:
    """Return the number of seeds, and of draws of labelled images where some drew the same."""
    number = len(row.miou)
    if row.labels == "all" or row.draws is None or row.draws == number:
        return str(number)
    return f"{number} ({counted(row.draws, 'draw')})"


def _gain(row: Cell, baseline: str) -> str:
    return difference(*row.gains[baseline]) if baseline in row.gains else ""


def _draw(plan: Plan, rows: Sequence[Cell], over_sets: Sequence[means.Mean], path: Path) -> None:
    from matssl.pictures.study import learning_curves

    several = len(plan.variants) > 1
    points: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for row in rows:
        title = f"{row.dataset}, {row.variant}" if several else row.dataset
        point = (float(row.images), 100 * row.mean, 100 * row.std)
        points.setdefault(title, {}).setdefault(row.start, []).append(point)
    for mean in over_sets:
        # Sets differ in how many images "all" are: their mean number is its place.
        title = f"mean of {counted(len(plan.independent), 'set')}"
        title = f"{title}, {mean.variant}" if several else title
        if mean.sets == len(plan.independent):
            point = (mean.images, 100 * mean.miou, np.nan)
            points.setdefault(title, {}).setdefault(mean.arm, []).append(point)
    panels = []
    for title, arms in points.items():
        lines = []
        for start in (start.name for start in plan.starts):
            if own := sorted(arms.get(start, [])):
                x, y, spread = ([point[i] for point in own] for i in range(3))
                lines.append((start, x, y, spread))
        panels.append((title, lines))
    learning_curves(panels, path)
