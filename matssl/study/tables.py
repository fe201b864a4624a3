"""The table of a study: a row a start, its spread over seeds and its gain over the baseline."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_text
from matssl.core.tables import csv_text, percent
from matssl.measure import intervals
from matssl.study.plan import COLUMNS, Job, Plan


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
        gain: mean paired difference from the baseline, None for the baseline itself.
        half: half width of its 95 % interval; NaN with one common seed.
    """

    dataset: str
    variant: str
    labels: str
    images: int
    start: str
    miou: Mapping[int, float]
    others: Mapping[str, Mapping[int, float]]
    gain: float | None
    half: float

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
        tests = plan.tests(dataset)
        for test in tests:
            scores: dict[str, dict[int, float]] = {}
            images = 0
            for start in plan.starts:
                scores[start.name] = {}
                for seed in plan.seeds:
                    found = results.get(Job(start, dataset, variant, labels, seed).name)
                    if found is not None and test in found["miou"]:
                        scores[start.name][seed] = float(found["miou"][test])
                        images = int(found["images"])
            label = dataset if len(tests) == 1 else f"{dataset} ({test})"
            for start in plan.starts:
                if not scores[start.name]:
                    continue
                gain, half = None, float("nan")
                common = scores[start.name].keys() & scores[plan.baseline].keys()
                if start.name != plan.baseline and common:
                    gain, half = intervals.paired(
                        [scores[plan.baseline][seed] for seed in sorted(common)],
                        [scores[start.name][seed] for seed in sorted(common)],
                    )
                own = scores[start.name]
                names = {seed: Job(start, dataset, variant, labels, seed).name for seed in own}
                others = {
                    column: {
                        seed: float(found["scores"][test][column])
                        for seed, name in names.items()
                        if column in (found := results[name]).get("scores", {}).get(test, {})
                    }
                    for column in plan.columns
                }
                rows.append(
                    Cell(label, variant, labels, images, start.name, own, others, gain, half)
                )
    return rows


def markdown(plan: Plan, rows: Sequence[Cell]) -> str:
    """Return the table: mean, spread, number of seeds, paired difference with interval."""
    variants = len(plan.variants) > 1
    head = ["data set", "variant", "labelled images", "start", "mIoU %", "seeds"]
    head.append(f"over {plan.baseline}, paired, 95 %")
    head += [COLUMNS[name] for name in plan.columns]
    if not variants:
        head.remove("variant")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        cells = [row.dataset, row.variant, str(row.images), row.start]
        cells += [_spread(row.miou), str(len(row.miou)), _gain(row)]
        cells += [_spread(row.others[name]) for name in plan.columns]
        if not variants:
            cells.pop(1)
        lines.append("| " + " | ".join(cells) + " |")
    guided = [start.name for start in plan.starts if start.guided]
    if guided:
        lines += ["", f"Pretraining of {', '.join(guided)} saw the labelled images of its draw."]
    return "\n".join(lines)


def write(plan: Plan, results: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Write table.md, table.csv and curves.png of what is done, and print the table.

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
    text = markdown(plan, rows)
    done = f"{len(results)} of {len(plan.jobs())} runs done."
    atomic_write_text(out / "table.md", f"{text}\n\n{done}\n")
    lines = csv_text(_lines(plan, results), digits=None)
    atomic_write_text(out / "table.csv", lines)
    _draw(plan, rows, out / "curves.png")
    print(f"\n{text}\n\n{done}", flush=True)
    print(f"table   {out / 'table.md'}\nplot    {out / 'curves.png'}", flush=True)


def _lines(plan: Plan, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, object]]:
    """Return one row a job and test split, for other programs."""
    return [
        {
            "start": job.start.name,
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


def _spread(scores: Mapping[int, float]) -> str:
    """Return mean and sample standard deviation in per cent; nothing without a score."""
    values = np.array(list(scores.values()))
    if len(values) == 0:
        return ""
    return percent(values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan)


def _gain(row: Cell) -> str:
    if row.gain is None:
        return ""
    gain, half = 100 * row.gain, 100 * row.half
    if np.isnan(half):
        return f"{gain:+.1f}"
    return f"{gain:+.1f} [{gain - half:+.1f}, {gain + half:+.1f}]"


def _draw(plan: Plan, rows: Sequence[Cell], path: Path) -> None:
    from matssl.pictures.study import learning_curves

    panels = []
    several = len(plan.variants) > 1
    for dataset, variant in dict.fromkeys((row.dataset, row.variant) for row in rows):
        lines = []
        for start in dict.fromkeys(row.start for row in rows):
            own = (dataset, variant, start)
            points = [r for r in rows if (r.dataset, r.variant, r.start) == own]
            points.sort(key=lambda r: r.images)
            if points:
                x = [float(r.images) for r in points]
                y = [100 * r.mean for r in points]
                lines.append((start, x, y, [100 * r.std for r in points]))
        panels.append((f"{dataset}, {variant}" if several else dataset, lines))
    learning_curves(panels, path)
