"""170 micrographs are enough: python -m benchmarks.small_data --root DATA [--seeds 0 1 2]

Every method with its recipe on 170 images of the pool (others for each seed), small tiles, a
ResNet-18; the dense probe scores the encoder before the first step, on the way and at the end. Goes
on where it stopped. Results: OUTPUT_DIR/runs.csv and a table on the console: how many of the runs
end with a better probe than their own initialisation.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.campaign import append, rows
from matssl.core.errors import guard
from matssl.data import readers
from matssl.methods import distinct, settings_class
from matssl.methods.settings import GuidedSettings

DISTINCT = distinct()

IMAGES = 170
SMALL = "--encoder resnet18 --view_size 64 --tile_size 96 --batch_size 32 --steps 400 --threads 1"


def main(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the count; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.small_data")
    parser.add_argument("--root", required=True, help="folder of ssl_pool and of the labelled set")
    parser.add_argument("--labels", default="uhcs", help="labelled set below the root")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", default="experiments/small_data")
    args = parser.parse_args(argv)
    out, root = Path(args.output_dir), Path(args.root)
    out.mkdir(parents=True, exist_ok=True)
    pool, table = root / "ssl_pool", out / "runs.csv"
    paths = readers.find_images(pool)
    done = {(row["model"], int(row["seed"])) for row in rows(table)}
    for seed in args.seeds:
        chosen = np.random.default_rng(seed).choice(len(paths), IMAGES, replace=False)
        images = out / f"images_{seed}"
        images.mkdir(exist_ok=True)
        for place in chosen:
            link = images / paths[place].relative_to(pool).as_posix().replace("/", "_")
            link.unlink(missing_ok=True)
            link.symlink_to(paths[place].resolve())
        for model in DISTINCT:
            if (model, seed) in done:
                continue
            labels = [str(root / args.labels), "--splits", str(root / "PROTOCOL.json")]
            words = ["--model", model, "--data_path", str(images), "--seed", str(seed)]
            words += [*SMALL.split(), "--probe_path", *labels, "--probe_every", "100"]
            words += ["--output_dir", str(out), "--name", f"{model}-{seed}", "--overwrite"]
            if issubclass(settings_class(model), GuidedSettings):
                words += ["--labeled_path", labels[0], "--labeled_count", "1"]
            code = guard(importlib.import_module("train_ssl").main, [*words, "--quiet"])
            if code:
                return code
            scores = [r["probe_miou"] for r in rows(out / "ssl" / f"{model}-{seed}" / "probe.csv")]
            best = max(scores, key=float)
            row = {
                "model": model,
                "seed": seed,
                "start": scores[0],
                "end": scores[-1],
                "best": best,
            }
            append(table, row)
    print(_summary(rows(table)))
    return 0


def _summary(made: Sequence[dict[str, str]]) -> str:
    lines = ["| method | probe mIoU at the start | at the end | gain | better |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for model in dict.fromkeys(row["model"] for row in made):
        own = [row for row in made if row["model"] == model]
        start, end = (100 * np.array([float(row[k]) for row in own]) for k in ("start", "end"))
        better = f"{int((end > start).sum())} of {len(own)}"
        gain = end - start
        spread = f" ± {gain.std(ddof=1):.1f}" if len(own) > 1 else ""
        numbers = f"{start.mean():.1f} | {end.mean():.1f} | {gain.mean():+.1f}{spread}"
        lines.append(f"| {model} | {numbers} | {better} |")
    total = sum(float(row["end"]) > float(row["start"]) for row in made)
    return "\n".join([*lines, "", f"{total} of {len(made)} runs end better than they started."])


if __name__ == "__main__":
    sys.exit(guard(main))
