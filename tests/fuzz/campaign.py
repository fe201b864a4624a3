"""Thousands of spoiled files against the commands: ``python -m tests.fuzz.campaign --count 2000``.

Goes on where it stopped: what the table holds is not run again. ``--seed 17`` runs one case and
shows what it printed; ``--keep FOLDER`` leaves its files there.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

# Before torch: a process that has started threads of OpenMP cannot be forked.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OPENCV_LOG_LEVEL", "WARN")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from benchmarks import campaign  # noqa: E402
from matssl import pictures  # noqa: E402
from matssl.core.run_folder import atomic_write_bytes  # noqa: E402
from tests.fuzz import harness, material  # noqa: E402
from tests.fuzz.kinds import KINDS  # noqa: E402

MODULES = (
    *("train_ssl", "eval_model", "train_finetune", "matssl.stages.pretrain.loop"),
    *(
        "matssl.stages.evaluate.predict",
        "matssl.stages.finetune.loop",
        "matssl.methods.matssl.method",
    ),
    *("matssl.tools.doctor", "matssl.tools.measure", "matssl.tools.inspect_weights"),
    *("matssl.preflight", "matssl.data.layouts", "matssl.hub", "scipy.ndimage"),
    *(
        "matssl.pictures.segmentation",
        "matssl.pictures.objects",
        "matssl.pictures.training",
        "matssl.measure.tables",
    ),
    *("matssl.measure.objects.found", "matssl.stages.measure.kinds", "matssl.pictures.grains"),
    *("matssl.pictures.fractions", "matssl.pictures.layers"),
)


def main() -> int:
    """Run what is missing and print the counts; returns 1 where there are faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="cases, seeds from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this case alone, with what it prints")
    parser.add_argument("--kind", choices=list(KINDS), help="cases of this kind alone")
    parser.add_argument("--table", type=Path, default=Path("experiments/fuzz.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _prepare()
    with tempfile.TemporaryDirectory(prefix="fuzz-material-") as folder:
        sound = material.make(Path(folder))
        material.run_of_pretraining(Path(folder))
        if args.seed is not None:
            outcome = harness.run(args.seed, sound, args.kind)
            print(outcome.printed, *outcome.row().values(), sep="\n")
            return int(bool(outcome.fault))
        args.table.parent.mkdir(parents=True, exist_ok=True)
        done = {int(row["seed"]) for row in campaign.rows(args.table)}
        for seed in range(args.first, args.first + args.count):
            kind = args.kind or harness.kind_of(seed)
            if seed not in done and kind == (args.kind or kind):
                campaign.append(args.table, harness.run(seed, sound, args.kind).row())
    rows = campaign.rows(args.table)
    ends = Counter((row["kind"], row["end"]) for row in rows)
    names = ("accepted", "partly", "refused", "fault")
    print("| kind | cases |", " | ".join(names), "|")
    for kind in KINDS:
        counts = [ends[kind, name] for name in names]
        print(f"| {kind} | {sum(counts)} |", " | ".join(map(str, counts)), "|")
    totals = [sum(ends[kind, name] for kind in KINDS) for name in names]
    print(f"| all | {sum(totals)} |", " | ".join(map(str, totals)), "|")
    return int(totals[-1] > 0)


def _prepare() -> None:
    """Import all that cases need, so that each of them need not, and draw no pictures."""
    for name in MODULES:
        importlib.import_module(name)
    pixel = cv2.imencode(".png", np.full((1, 1, 3), 255, np.uint8))[1].tobytes()

    def save(figure: Figure, path: Path) -> None:
        # Drawing takes longer than all else, and other tests draw.
        atomic_write_bytes(path, pixel)

    pictures.save = save
    # What is there is never looked at again by the collector, which would copy it to each child.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    sys.exit(main())
