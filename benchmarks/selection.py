"""Which way to choose pictures is worth its trouble: python -m benchmarks.selection --root DATA

A simulated annotator on uhcs and EBC1: the arms of ``select_images --learning_curve``, ten seeds,
budgets of 1, 2, 4 and 8 pictures, a logistic head on filters of the picture. Test images stay
closed; another third of the specimens scores for each seed. Goes on where it stopped. Results:
OUTPUT_DIR/learning_curve/SET-START/ and tables on the console.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.campaign import rows
from matssl.core.errors import guard
from matssl.selection import CHANCE
from matssl.tools import select_images

SETS = {
    "uhcs": ["--specimens", "{out}/uhcs.csv", "--splits", "{root}/PROTOCOL.json"],
    "nasa/EBC1": ["--group_regex", "^([^_]+)_"],
}
ARMS = ("clasp", "typiclust", "coreset", "entropy", "margin", "boundary_entropy")
BUDGETS = (1, 2, 4, 8)


def main(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.selection")
    parser.add_argument("--root", required=True, help="folder of uhcs and nasa/EBC1")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--start", nargs="+", default=["random", "typiclust"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--output_dir", default="experiments/selection")
    args = parser.parse_args(argv)
    out, root = Path(args.output_dir), Path(args.root)
    out.mkdir(parents=True, exist_ok=True)
    _specimens(root, out / "uhcs.csv")
    for name in args.sets:
        told = [word.format(out=out, root=root) for word in SETS[name]]
        for start in args.start:
            run = f"{name.split('/')[-1]}-{start}"
            words = ["filters", str(root / name), *told, "--learning_curve", "--name", run]
            words += ["--arms", *ARMS, "--budgets", *map(str, BUDGETS), "--start", start]
            words += ["--seeds", str(args.seeds), "--output_dir", str(out), "--threads", "1"]
            there = (out / "learning_curve" / run / "curve.csv").is_file()
            code = guard(select_images.main, [*words, "--quiet", *(["--resume"] if there else [])])
            if code:
                return code
            print(_table(name, start, rows(out / "learning_curve" / run / "areas.csv")))
    return 0


def _specimens(root: Path, path: Path) -> None:
    """Write which heat treatment each picture of uhcs is of, as its publishers' table says."""
    with open(root / "uhcs" / "samples.csv", encoding="utf-8", newline="") as file:
        own = list(csv.DictReader(file))
    lines = ["image,specimen", *(f"{row['file']},{row['sample_key']}" for row in own)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _table(name: str, start: str, areas: Sequence[dict[str, str]]) -> str:
    lines = [f"{name}, first picture by {start}, n = {areas[0]['n']} seeds"]
    lines.append("| method | area % | beyond random | beyond foreground_random | foreground Mpx |")
    lines.append("| --- | --- | --- | --- | --- |")
    for row in areas:
        gains = [_gain(row, f"beyond_{chance}") for chance in CHANCE]
        own = f"{100 * float(row['area']):.1f} ± {100 * float(row['area_half_width']):.1f}"
        front = float(row["foreground_px_at_last"]) / 1e6
        lines.append(f"| {row['method']} | {own} | {gains[0]} | {gains[1]} | {front:.2f} |")
    return "\n".join([*lines, ""])


def _gain(row: dict[str, str], name: str) -> str:
    if not row[name]:
        return "–"
    return f"{100 * float(row[name]):+.1f} ± {100 * float(row[f'{name}_half_width']):.1f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
