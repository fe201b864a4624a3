"""Which --augmentation helps: python -m benchmarks.augmentations --root DATA [--seeds 0 1 2]

Few labelled images of three sets, short runs from random weights, the same images, crops and steps
in four arms: the recipe's own changes, and the presets light, medium and heavy. Scored by the mean
IoU of the averaged model on the validation images after the last step; test images stay closed.
Goes on where it stopped. Results: OUTPUT_DIR/runs.csv and a table on the console with the
differences to the recipe's own changes, paired by seed.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.campaign import append, rows
from matssl.core.errors import guard
from matssl.measure import intervals
from matssl.stages.finetune.augmentation_settings import PRESETS

SETS = ("uhcs", "nasa/EBC3", "tem/bubble_512")
OWN = "recipe"
ARMS = (OWN, *PRESETS)
STEPS = 200
SHORT = f"--max_train_images 4 --steps {STEPS} --val_every {STEPS} --crop_size 128 --batch_size 4"


def main(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.augmentations")
    parser.add_argument("--root", required=True, help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=1000, help="runs of this call")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--output_dir", default="experiments/augmentations")
    args = parser.parse_args(argv)
    out, root = Path(args.output_dir), Path(args.root)
    out.mkdir(parents=True, exist_ok=True)
    table = out / "runs.csv"
    done = {(row["set"], row["arm"], int(row["seed"])) for row in rows(table)}
    # Seeds outermost: what there is at any time is whole for the seeds before.
    plan = [(name, arm, seed) for seed in args.seeds for name in args.sets for arm in ARMS]
    for name, arm, seed in [run for run in plan if run not in done][: args.most]:
        label = f"{name.replace('/', '-')}-{arm}-{seed}"
        words = ["--finetune_dataset", str(root / name), "--splits", str(root / "PROTOCOL.json")]
        words += [*SHORT.split(), "--seed", str(seed), "--threads", args.threads, "--quiet"]
        words += ["--output_dir", str(out), "--name", label, "--overwrite"]
        words += [] if arm == OWN else ["--augmentation", arm]
        code = guard(importlib.import_module("train_finetune").main, words)
        if code:
            return code
        run = out / "finetune" / label
        last = rows(run / "log.csv")[-1]
        append(table, {"set": name, "arm": arm, "seed": seed, "val_miou": last["val_miou"]})
        # The sheets stay to be looked at; models are not needed.
        for path in (*run.glob("*.ckpt"), *run.glob("*.pth"), *run.glob("*.safetensors")):
            path.unlink()
        shutil.rmtree(run / "validation", ignore_errors=True)
    print(_summary(rows(table)))
    return 0


def _summary(made: Sequence[dict[str, str]]) -> str:
    """Return means over the seeds that every arm of a set has, and the paired differences."""
    scores = {(r["set"], r["arm"], int(r["seed"])): 100 * float(r["val_miou"]) for r in made}
    lines = [
        f"| set | {' | '.join(ARMS)} | {' | '.join(f'{arm} - {OWN}' for arm in PRESETS)} | n |"
    ]
    lines.append("| --- |" + " --- |" * (len(ARMS) + len(PRESETS) + 1))
    for name in dict.fromkeys(row["set"] for row in made):
        seeds = sorted({seed for own, _, seed in scores if own == name})
        whole = [seed for seed in seeds if all((name, arm, seed) in scores for arm in ARMS)]
        if not whole:
            continue
        found = {arm: np.array([scores[name, arm, seed] for seed in whole]) for arm in ARMS}
        spread = {a: f" ± {v.std(ddof=1):.1f}" if len(v) > 1 else "" for a, v in found.items()}
        cells = [f"{values.mean():.1f}{spread[arm]}" for arm, values in found.items()]
        cells += [_difference(found[arm], found[OWN]) for arm in PRESETS]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(whole)} |")
    return "\n".join(lines)


def _difference(values: np.ndarray, own: np.ndarray) -> str:
    mean, half = intervals.paired(own.tolist(), values.tolist())
    return (
        f"{mean:+.1f}" if len(own) < 2 else f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"
    )


if __name__ == "__main__":
    sys.exit(guard(main))
