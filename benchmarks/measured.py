"""Numbers measured on predicted masks beside those of the annotators' masks; resumable.

    python -m benchmarks.measured --data DATA --out OUT run     # an hour or two on two cores
    python -m benchmarks.measured --data DATA --out OUT table   # the markdown table of RESULTS.md

Of each set: a cross-validation inside the training images, its ensemble on the test images, and
the tools' own measurements of the predicted and of the true masks of these, with the flags a user
would give. Folds and test are cut by specimen; where a set names no test, by the toolkit. The test
images are predicted once. A command whose result exists is not run again.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Set:
    """A labelled set: its folder, what is measured, what must be said of it and its classes."""

    folder: str
    what: str
    said: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


SETS = {
    "gb": Set("tem/gb_512", "fractions,grains", named=("--class", "foreground")),
    "bubbles": Set("tem/bubble_512", "fractions,objects"),
    "Super1": Set("nasa/Super1", "fractions,objects"),
    "uhcs": Set("uhcs", "fractions", ("--mask_folder", "labels")),
    "EBC1": Set("nasa/EBC1", "fractions,layers"),
}


@dataclass(frozen=True)
class Campaign:
    data: Path
    out: Path
    steps: int
    folds: int
    threads: int

    def command(self, result: Path, *words: object) -> None:
        """Run a command of the toolkit unless its result is there; its words go to the log."""
        if result.exists():
            return
        line = [sys.executable, *map(str, words)]
        print("$ python", " ".join(line[1:]), flush=True)
        start = time.monotonic()
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            code = subprocess.run(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
        print(f"  {time.monotonic() - start:.0f} s, exit code {code}", flush=True)
        # An image that failed is listed in the results; they hold the others.
        if code not in (0, 1):
            sys.exit(f"failed; see {self.out / 'log.txt'}")

    def run(self, name: str) -> None:
        """Train with folds, predict the test images, measure both kinds of masks."""
        one, out = SETS[name], self.out
        data = self.data / one.folder
        told = ("--output_dir", out, "--quiet")
        model = out / "finetune" / name
        plan = ("--steps", self.steps, "--folds", self.folds, "--threads", self.threads)
        # A cross-validation that was broken off goes on.
        again = ("--resume",) if model.exists() else ()
        tune = ("train_finetune.py", "--finetune_dataset", data, "--name", name)
        self.command(model / "ensemble.ckpt", *tune, *plan, *one.said, *told, *again)
        predicted = out / "eval" / name
        words = ("eval_model.py", "--model_path", model / "ensemble.ckpt", "--dataset", data)
        words = (*words, "--split", "test", "--name", name, "--threads", self.threads)
        self.command(predicted / "report.html", *words, *one.said, *told)
        measure = ("-m", "matssl.tools.measure")
        what = ("--what", one.what, *one.named, "--overwrite")
        result = out / "measure" / f"{name}-predicted"
        words = (*measure, predicted, "--folds_from", model, "--name", result.name)
        self.command(result / "report.html", *words, *what, *told)
        result = out / "measure" / f"{name}-true"
        words = (*measure, data, "--split", "test", "--name", result.name)
        self.command(result / "report.html", *words, *what, *one.said, *told)


# What is compared, by the begin of its column; of the rest the tables of a run speak.
QUANTITIES = (
    *("area fraction %", "N_A (", "mean ECD", "D50 (", "G planimetric (ASTM", "G intercept (ASTM"),
    *("mean intercept (", "thickness mean", "cracks per"),
)
HEADS = (
    *("set", "specimen", "class", "quantity", "fields", "true", "measured", "95 %", "inside"),
    *("corrected", "95 %", "inside"),
)


def compared(folder: Path, name: str) -> Iterator[tuple[str, ...]]:
    """Yield a row a specimen, class and quantity that both measurements have."""
    predicted, true = (_rows(folder / f"{name}-{kind}" / "specimens.csv") for kind in KINDS)
    for (specimen, of), own in predicted.items():
        other = true.get((specimen, of), {})
        fields = own.get("fields") or own.get("layer fields") or ""
        for column in (c for c in own if c.startswith(QUANTITIES)):
            measured, right = (_number(row.get(column, "")) for row in (own, other))
            if not (math.isfinite(measured) and math.isfinite(right)):
                continue
            cells = [f"{right:.4g}", f"{measured:.4g}", *_interval(own, column, measured, right)]
            better = _number(own.get("corrected %", "")) if "fraction" in column else math.nan
            if math.isfinite(better):
                cells += [f"{better:.4g}", *_interval(own, "corrected %", better, right)]
            cells += [""] * (len(HEADS) - 5 - len(cells))
            yield (name, specimen, of, column, fields, *cells)


def _interval(row: dict[str, str], column: str, value: float, right: float) -> tuple[str, str]:
    """Return the interval of a column, and whether it holds the right value; empty without one."""
    low, high = (_first(row, _named(column, end)) for end in ("low", "high"))
    half = _number(row.get(column.replace(" mean ", " half width 95 % "), ""))
    if math.isnan(low) and column != column.replace(" mean ", " half width 95 % "):
        low, high = value - half, value + half
    if not (math.isfinite(low) and math.isfinite(high)):
        return "", ""
    return f"{low:.4g} to {high:.4g}", "yes" if low <= right <= high else "no"


def _first(row: dict[str, str], columns: Iterable[str]) -> float:
    return next(filter(math.isfinite, (_number(row.get(c, "")) for c in columns)), math.nan)


def _named(column: str, end: str) -> tuple[str, str]:
    """Return what the end of a column's interval may be called."""
    return f"{column}, 95 % {end}", re.sub(r" (?=%|\()", f" {end} ", column, count=1)


KINDS = ("predicted", "true")


def _rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    if not path.is_file():
        return {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        return {(row["specimen"], row["class"]): row for row in csv.DictReader(file)}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def main() -> int:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("experiments/measured"))
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(args.data.resolve(), out, args.steps, args.folds, args.threads)
    if args.what == "run":
        for name in args.sets:
            campaign.run(name)
    print("|", " | ".join(HEADS), "|")
    print("|", " | ".join("---" for _ in HEADS), "|")
    for name in args.sets:
        for row in compared(out / "measure", name):
            print("|", " | ".join(row), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
