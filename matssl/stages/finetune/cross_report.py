"""Tables, curves and words over the folds of a cross-validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from matssl import metrics, report
from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.run_folder import RunFolder, atomic_write_text
from matssl.core.tables import Row, csv_text, percent
from matssl.data.layouts import Pair
from matssl.measure import intervals
from matssl.metrics.counts import confusion
from matssl.metrics.score import Gathered
from matssl.pictures import folds as pictures
from matssl.pictures.training import Columns, read_table

EPOCHS, SUMMARY = "cv_epochs.csv", "cv_summary.csv"
LOSS, CURVES = "loss.png", "metrics.png"
# Columns that are drawn as losses: of a step, of an epoch, on validation images.
LOSSES = ("loss", "train_loss", "val_loss")
# Rows of the summary below those of the folds.
MEAN, SD, LOW, HIGH, COUNT = "mean", "sd", "low 95 %", "high 95 %", "folds"
# Columns of the summary that are no scores.
FACTS = ("fold", "best_step", "images", "specimens", "true_pixels")
# The column of a fold's tables that the others stand over; the rate of learning is no result.
STEP, NO_METRIC = "step", ("step", "lr", "wait_share", "l2")
NOTE = (
    "Every image is scored by the model that has not seen its specimen. The step of each model was "
    "chosen inside its own training images, if at all. The interval is Student's t over the folds, "
    "with n - 1 degrees of freedom; folds share training images, so that it is a little too narrow "
    "for what another set of specimens would give."
)


def write(
    folder: RunFolder,
    folds: Mapping[int, Path],
    scored: Sequence[tuple[Pair, Gathered]],
    names: Sequence[str],
) -> list[tuple[str, str]]:
    """Write cv_epochs.csv, cv_summary.csv, loss.png and metrics.png; return parts of the report.

    Args:
        folder: of all folds.
        folds: folder of each by its number.
        scored: every held-out image, whose split names its fold, and what was gathered of it.
        names: of the classes.
    """
    curves = epochs({number: course(place) for number, place in folds.items()})
    rows = summary(folds, scored, names)
    if folder.writer:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        atomic_write_text(folder.path(EPOCHS), csv_text(curves))
        atomic_write_text(folder.path(SUMMARY), csv_text(rows, columns))
    shown = list(dict.fromkeys(str(row["metric"]) for row in curves))
    losses = [name for name in shown if name in LOSSES]
    scores = [name for name in shown if name not in LOSSES]
    pictures.band(curves, losses, folder.path(LOSS), "loss")
    if scores:
        pictures.band(curves, scores, folder.path(CURVES), "validation inside the folds")
    body = report.table(_page(rows, names), strong=[len(folds)]) + report.note(NOTE)
    drawn = [report.picture(folder.root / name, width=500) for name in (LOSS, CURVES)]
    return [("Folds", body), ("Course of the folds", report.beside(*drawn))]


def course(place: Path) -> dict[str, dict[int, float]]:
    """Return what a fold's tables say of each metric, by step.

    Columns are read by their names, whatever their order.

    Args:
        place: folder of the fold.
    """
    found: dict[str, dict[int, float]] = {}
    # The loss of every step; that of log.csv is the one of the step that was validated.
    for name in ("log.csv", "steps.csv"):
        table = read_table(place / name) if (place / name).is_file() else Columns(0)
        steps = table[STEP]
        for metric, values in table.items():
            if metric in NO_METRIC:
                continue
            pairs = zip(steps.tolist(), values.tolist(), strict=True)
            known = {int(s): v for s, v in pairs if math.isfinite(s) and math.isfinite(v)}
            found[metric] = found.get(metric, {}) | known
    return found


def epochs(courses: Mapping[int, Mapping[str, Mapping[int, float]]]) -> list[dict[str, object]]:
    """Return a row a metric and step: mean and sample standard deviation over n folds.

    Args:
        courses: of each fold by its number, see :func:`course`.
    """
    metrics_of = dict.fromkeys(metric for own in courses.values() for metric in own)
    rows: list[dict[str, object]] = []
    for metric in metrics_of:
        steps = sorted({step for own in courses.values() for step in own.get(metric, {})})
        for step in steps:
            values = [own[metric][step] for own in courses.values() if step in own.get(metric, {})]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
            row = {"step": step, "metric": metric, "mean": float(np.mean(values))}
            rows.append({**row, "sd": spread, "n": len(values)})
    return rows


def summary(
    folds: Mapping[int, Path], scored: Sequence[tuple[Pair, Gathered]], names: Sequence[str]
) -> list[dict[str, object]]:
    """Return a row a fold with its held-out scores, then mean, spread and interval over folds.

    Args:
        folds: folder of each by its number.
        scored: see :func:`write`.
        names: of the classes.
    """
    rows: list[dict[str, object]] = []
    for number, place in folds.items():
        own = [(pair, one) for pair, one in scored if pair.split == place.name]
        row: dict[str, object] = {"fold": number, "best_step": _best_step(place)}
        row |= {"images": len(own), "specimens": len({pair.group for pair, _ in own})}
        rows.append(row | (_scores([one for _, one in own], names) if own else {}))
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in FACTS))
    below: dict[str, dict[str, object]] = {
        name: {"fold": name} for name in (MEAN, SD, LOW, HIGH, COUNT)
    }
    for column in columns:
        cells = [row.get(column) for row in rows]
        values = [v for v in cells if isinstance(v, float) and math.isfinite(v)]
        below[COUNT][column] = len(values)
        if not values:
            continue
        known = intervals.sample(values)
        half = intervals.half_width(known.variance, known.degrees)
        mean = known.mean
        below[MEAN][column] = mean
        below[SD][column] = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
        # Scores are shares.
        below[LOW][column] = max(0.0, mean - half) if math.isfinite(half) else math.nan
        below[HIGH][column] = min(1.0, mean + half) if math.isfinite(half) else math.nan
    return [*rows, *below.values()]


def _scores(gathered: Sequence[Gathered], names: Sequence[str]) -> dict[str, object]:
    """Return the scores of a fold, its pixels pooled."""
    found = {k: v for k, v in metrics.means(gathered).items() if isinstance(v, float)}
    for kind, values in metrics.by_name(gathered).items():
        found |= {f"{kind} {n}": v for n, v in zip(names, values.tolist(), strict=True)}
    pixels = np.sum([one[confusion] for one in gathered], axis=0).sum()
    return {"true_pixels": int(pixels), **found}


def _best_step(place: Path) -> int | None:
    """Return the step of a fold's kept model."""
    try:
        step = textfiles.read_json(place / "status.json")["best_step"]
    except (UserError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _page(rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, object]]:
    """Return the summary for the page: mean IoU and IoU of each class, in per cent."""
    shown = {"miou": "mean IoU %", "accuracy": "right pixels %"}
    shown |= {f"IoU {name}": f"IoU {name} %" for name in names}
    page = []
    for row in rows:
        line: dict[str, object] = {name.replace("_", " "): row.get(name) for name in FACTS[:-1]}
        for column, head in shown.items():
            value = row.get(column)
            line[head] = percent(value) if isinstance(value, float) else value
        page.append(line)
    return page
