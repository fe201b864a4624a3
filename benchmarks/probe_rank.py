"""Does the dense probe foretell fine-tuning? python -m benchmarks.probe_rank ENCODERS --root DATA

Every encoder (snapshots of a run: train_ssl.py --snapshot_every) is scored by the probe on each
labelled set and fine-tuned there; Spearman's rank correlation of both, a set. Fine-tuning is a
study of its own, which goes on where it stopped. Test images are only read by the evaluation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from matssl.core.errors import UserError, guard
from matssl.core.parsing import read_settings
from matssl.stages.pretrain.settings import PretrainSettings
from matssl.study import plan as plans
from matssl.study import tables
from matssl.study.runner import Runner
from matssl.tools import probe

SETS = Path(__file__).parent / "comparison.yaml"


def main(argv: Sequence[str]) -> int:
    """Run what is missing and print the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.probe_rank")
    parser.add_argument("encoders", nargs="+", help="weights files, ten or more")
    parser.add_argument("--root", required=True, help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=["EBC1", "EBC3"], help="of comparison.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=250, help="of a fine-tuning")
    parser.add_argument("--output_dir", default="experiments/studies")
    parser.add_argument("--name", default="probe-rank")
    args = parser.parse_args(argv)
    known = read_settings(SETS)["datasets"]
    files = {"random": "none"} | {Path(file).stem: file for file in args.encoders}
    if len(files) <= len(args.encoders):
        raise UserError("two of the encoders have one file name; rename them apart")
    content = {
        "starts": files,
        "datasets": {name: known[name] for name in args.sets},
        "finetune": {"steps": args.steps},
        "seeds": args.seeds,
    }
    plan = plans.read(content, args.name)
    runner = Runner(plan, Path(args.root), Path(args.output_dir) / plan.name, SETS.parent)
    runner.check()
    runner.run()
    runner.write_table()
    cells = tables.cells(plan, runner.results())
    for name in args.sets:
        tuned = {cell.start: 100 * cell.mean for cell in cells if cell.dataset == name}
        probed = _probed(Path(args.root), known[name], files)
        table = pd.DataFrame({"probe mIoU %": probed, "fine-tuned test mIoU %": tuned})
        rank = table.rank()
        rho = float(np.corrcoef(rank.iloc[:, 0], rank.iloc[:, 1])[0, 1])
        count = f"{len(table)} encoders, {len(args.seeds)} seeds of fine-tuning each"
        print(f"\n{name}: Spearman {rho:+.2f} ({count})\n{table.round(1).to_string()}")
    return 0


def _probed(root: Path, labels: dict[str, str], files: dict[str, str]) -> dict[str, float]:
    """Return the probe's mean IoU of each encoder in percent."""
    settings = PretrainSettings(
        in_channels=1,
        probe_path=str(root / labels["finetune_dataset"]),
        splits=str(root / labels["splits"]),
    )
    found = {one.source: one.miou for one in probe.scores(list(files.values()), settings)}
    return {name: 100 * found[file] for name, file in files.items()}


if __name__ == "__main__":
    sys.exit(guard(main))
