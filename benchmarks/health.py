"""False alarms of the monitor: python -m benchmarks.health [--runs 100]

Short runs with the recipes' settings on sound data, every method in turn, seeds 0, 1, 2 ...; a run
with any verdict other than healthy (or, in the first steps, too early to say) counts. Goes on where
it stopped.
Results: OUTPUT_DIR/runs.csv, a line a run, and the count on the console.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.campaign import append, rows
from matssl.core.errors import guard
from matssl.data import synthetic
from matssl.methods import distinct, settings_class
from matssl.methods.settings import GuidedSettings

DISTINCT = distinct()

KINDS = tuple(synthetic.KINDS)
# Sizes with which a run takes half a minute on one core.
SMALL = "--view_size 64 --tile_size 64 --batch_size 16 --steps 150 --threads 1 --hidden_dim 256"


def main(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the count; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.health")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--output_dir", default="experiments/health")
    parser.add_argument("--pool", help="folder of real micrographs for every second run")
    args = parser.parse_args(argv)
    out = Path(args.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        if not (out / kind).is_dir():
            sizes = {"n_train": 40, "n_val": 1, "n_test": 1, "size": 128}
            synthetic.write_dataset(out / kind, kind, seed=5, **sizes)
    table = out / "runs.csv"
    done = rows(table)
    for number in range(len(done), args.runs):
        model, seed = DISTINCT[number % len(DISTINCT)], number // len(DISTINCT)
        kind = KINDS[(number + seed) % len(KINDS)]
        real = args.pool is not None and number % 2 == 1
        data = Path(args.pool) if real else out / kind / "train"
        words = ["--model", model, "--data_path", str(data), "--seed", str(seed), *SMALL.split()]
        words += ["--output_dir", str(out), "--name", "run", "--overwrite", "--quiet"]
        if issubclass(settings_class(model), GuidedSettings):
            words += ["--labeled_path", str(out / kind), "--labeled_count", "1"]
        code = guard(importlib.import_module("train_ssl").main, words)
        if code:
            return code
        verdicts = [row["verdict"] for row in rows(out / "ssl" / "run" / "log.csv")]
        alarms = [said for said in verdicts if not said.startswith(("healthy", "too early"))]
        row = {"model": model, "seed": seed, "pool": "real" if real else kind, "steps": 150}
        row |= {"looks": len(verdicts), "alarms": len(alarms), "worst": "".join(alarms[-1:])}
        append(table, row)
    made = rows(table)
    false = [row for row in made if int(row["alarms"])]
    print(f"{len(false)} of {len(made)} sound runs raised an alarm")
    return 0


if __name__ == "__main__":
    sys.exit(guard(main))
