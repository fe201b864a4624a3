"""Areas under learning curves with intervals, their pictures and page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import run_folder
from matssl.core.run_folder import RunFolder
from matssl.core.tables import csv_text, percent
from matssl.core.wording import counted
from matssl.measure import intervals
from matssl.pictures import selection as pictures
from matssl.selection import CHANCE
from matssl.selection.curve import area

CEILING = "all labels"
SCORED = {
    "cut": "a third of the training and validation images, by specimen, other ones for each seed",
    "val": "the validation images",
    "test": "the test images",
}
Rows = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class About:
    """What a curve is of.

    Attributes:
        pool: folder of the labelled set.
        model: weights of the features.
        features: what they are, in words.
        budgets: labelled pictures.
        arms: methods, those of chance first.
        seeds: of the repetitions.
        names: of the classes.
        background: index of the class that is no foreground.
        scored: which images score.
        start: how methods that need a model chose the first picture.
    """

    pool: str
    model: str
    features: str
    budgets: tuple[int, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]
    background: int
    scored: str
    start: str


@dataclass(frozen=True)
class Arm:
    """A method over all seeds.

    Attributes:
        scores: mean IoU, (seeds, budgets).
        foreground: pixels of the foreground that were labelled, (seeds, budgets).
        areas: under the curve, (seeds,).
    """

    scores: NDArray[np.float64]
    foreground: NDArray[np.float64]
    areas: NDArray[np.float64]


def gathered(rows: Rows, about: About) -> dict[str, Arm]:
    """Return the methods with their scores; only seeds that all of them have."""
    found = {}
    for name in about.arms:
        scores, front = [], []
        for seed in about.seeds:
            own = {
                int(row["pictures"]): row
                for row in rows
                if row["arm"] == name and int(row["seed"]) == seed
            }
            scores.append([float(own[budget]["miou"]) for budget in about.budgets])
            front.append([float(own[budget]["foreground_px"]) for budget in about.budgets])
        under = np.array([area(about.budgets, one) for one in scores])
        found[name] = Arm(np.array(scores), np.array(front), under)
    return found


def table(arms: Mapping[str, Arm], about: About) -> list[dict[str, object]]:
    """Return a line a method: area, gain over both kinds of chance, last score, cost; 0 to 1."""
    rows = []
    for name, arm in arms.items():
        own = intervals.mean_of_fields(arm.areas.tolist())
        row: dict[str, object] = {
            "method": name,
            "area": own.mean,
            "area_half_width": own.half_width,
        }
        for chance in CHANCE:
            gain, half = intervals.paired(arms[chance].areas.tolist(), arm.areas.tolist())
            same = name == chance
            row[f"beyond_{chance}"] = math.nan if same else gain
            row[f"beyond_{chance}_half_width"] = math.nan if same else half
        last = intervals.mean_of_fields(arm.scores[:, -1].tolist())
        row |= {"miou_at_last": last.mean, "miou_at_last_half_width": last.half_width}
        row["foreground_px_at_last"] = float(arm.foreground[:, -1].mean())
        row["n"] = len(about.seeds)
        rows.append(row)
    return rows


def best(rows: Sequence[Mapping[str, object]]) -> str:
    """Return in a sentence which method has the largest area, and whether that is beyond chance."""
    top = max(rows, key=lambda row: float(str(row["area"])))
    name = top["method"]
    gains = [(c, top[f"beyond_{c}"], top[f"beyond_{c}_half_width"]) for c in CHANCE if c != name]
    parts = []
    for chance, gain, half in gains:
        value, width = float(str(gain)), float(str(half))
        told = f"{100 * value:+.1f}" + ("" if math.isnan(width) else f" ± {100 * width:.1f}")
        # Without an interval nothing is clear.
        clear = value - width > 0
        parts.append(f"{told} points beyond {chance}{'' if clear else ' (no clear difference)'}")
    return f"{name} has the largest area: {'; '.join(parts)}"


def write(folder: RunFolder, rows: Rows, about: About) -> None:
    """Write areas.csv, the pictures and report.html.

    Args:
        folder: of the results.
        rows: of curve.csv.
        about: what they are of.
    """
    arms = gathered(rows, about)
    made = table(arms, about)
    folder.write_text("areas.csv", csv_text(made))
    ceilings = [float(row["miou"]) for row in rows if row["arm"] == CEILING]
    ceiling = float(np.mean(ceilings)) if ceilings else None
    count = len(about.seeds)
    halves = {
        name: np.array([intervals.mean_of_fields(one.tolist()).half_width for one in arm.scores.T])
        for name, arm in arms.items()
    }
    score = f"mean IoU of {counted(count, 'seed')}"
    budgets = np.array(about.budgets, np.float64)
    pictures.curves(
        {name: (budgets, arm.scores.mean(axis=0), halves[name]) for name, arm in arms.items()},
        folder.path("curve.png"),
        score,
        "labelled pictures",
        ceiling,
        CHANCE,
    )
    pictures.curves(
        {
            name: (
                np.maximum(arm.foreground.mean(axis=0), 1) / 1e6 + 1e-9,
                arm.scores.mean(axis=0),
                halves[name],
            )
            for name, arm in arms.items()
        },
        folder.path("cost.png"),
        score,
        "labelled foreground, million pixels (mean over seeds)",
        ceiling,
        CHANCE,
    )
    gains = [
        (str(row["method"]), float(str(row["beyond_random"])), float(str(row[GAIN_HALF])))
        for row in made
        if row["method"] != "random"
    ]
    pictures.areas(gains, folder.path("areas.png"), "random")
    _page(folder, made, arms, about, ceiling)


GAIN_HALF = "beyond_random_half_width"


def _page(
    folder: RunFolder,
    made: Sequence[Mapping[str, object]],
    arms: Mapping[str, Arm],
    about: About,
    ceiling: float | None,
) -> None:
    root, count = folder.root, len(about.seeds)
    figures = [(str(count), "seeds"), (str(len(arms)), "methods")]
    if ceiling is not None:
        figures.append((f"{100 * ceiling:.1f} %", "mean IoU with all labels"))
    note = (
        "A simulated annotator labels the pictures that a method asks for; a head of logistic "
        "regression learns them from features that stay as they are, and is scored on "
        f"{SCORED[about.scored]}. Methods that need a model got their first picture by "
        f"{about.start}. The area is the mean height of a curve over the logarithm of the number "
        "of pictures. Intervals (95 %, Student's t over seeds) of gains are paired by seed; each "
        "stands for itself, and of many methods one may seem better by chance."
    )
    few = "" if count >= intervals.MIN_FIELDS else " Fewer than five seeds give no interval."
    rows = []
    for row in made:
        entry: dict[str, object] = {"method": row["method"], "area %": _pm(row, "area")}
        entry |= {f"beyond {chance}": _pm(row, f"beyond_{chance}", True) for chance in CHANCE}
        entry[f"mIoU at {about.budgets[-1]} %"] = _pm(row, "miou_at_last")
        entry["foreground, Mpx"] = f"{float(str(row['foreground_px_at_last'])) / 1e6:.2f}"
        rows.append(entry)
    by_budget = [
        {"method": name}
        | {
            str(budget): f"{100 * arm.scores[:, i].mean():.1f} % with "
            f"{arm.foreground[:, i].mean() / 1e6:.2f} Mpx"
            for i, budget in enumerate(about.budgets)
        }
        for name, arm in arms.items()
    ]
    background = about.names[about.background] if about.names else "0"
    cost = f"Foreground is all but {background}."
    sections = [
        ("", report.headline(figures) + report.note(f"{best(made)}.") + report.note(note + few)),
        ("Area under the learning curve", report.table(rows)),
        ("Gain over chance", report.picture(root / "areas.png", width=520)),
        ("Score and pictures", report.picture(root / "curve.png", width=760)),
        (
            "Score and labelled foreground",
            report.note(cost) + report.picture(root / "cost.png", width=760),
        ),
        ("By budget", report.table(by_budget)),
        ("Features", report.text(f"{about.model}: {about.features}")),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
    ]
    title = f"Which way to choose on {about.pool.rstrip('/').split('/')[-1]}"
    report.write(
        root / "report.html", title, f"learning curves, {counted(count, 'seed')}", sections
    )


def print_areas(folder: RunFolder, rows: Rows, about: About) -> None:
    """Print the area of each method and its gain over chance."""
    made = table(gathered(rows, about), about)
    wide = max(len(str(row["method"])) for row in made)
    for row in made:
        gain = _pm(row, "beyond_random", True)
        told = f", {gain} points beyond random" if row["method"] != "random" else ""
        print(f"  {row['method']:{wide}}  area {_pm(row, 'area')} %{told}")
    print(f"{best(made)}\nreport: {folder.root / 'report.html'}", flush=True)


def _pm(row: Mapping[str, object], name: str, signed: bool = False) -> str:
    """Return a number of a line in per cent with its half width."""
    value, half = float(str(row[name])), float(str(row[f"{name}_half_width"]))
    if math.isnan(value):
        return "–"
    text = percent(value, half)
    return f"+{text}" if signed and value >= 0 else text
