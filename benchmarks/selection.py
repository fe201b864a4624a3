"""Which way to choose pictures is worth its trouble: python -m benchmarks.selection --root DATA

A simulated annotator on uhcs and EBC1: the arms of ``select_images --learning_curve``, ten seeds,
budgets of 1, 2, 4 and 8 pictures, a logistic head on filters of the picture. Test images stay
closed; another third of the specimens scores for each seed. Goes on where it stopped. Results:
OUTPUT_DIR/learning_curve/SET-START/ and tables on the console. With ``--network`` the default of
the command against chance, three seeds, with a network that is trained anew on all labels so far
in every round: OUTPUT_DIR/network.csv.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.campaign import append, rows
from matssl.core import rng
from matssl.core.errors import guard
from matssl.data import layouts, specimens
from matssl.data.layouts import Pair
from matssl.measure import intervals
from matssl.selection import CHANCE
from matssl.selection.curve import area
from matssl.stages.select.settings import DEFAULT
from matssl.tools import select_images

SETS = {
    "uhcs": ["--specimens", "{out}/uhcs.csv", "--splits", "{root}/PROTOCOL.json"],
    "nasa/EBC1": ["--group_regex", "^([^_]+)_"],
}
ARMS = ("clasp", "typiclust", "coreset", "entropy", "margin", "boundary_entropy")
BUDGETS = (1, 2, 4, 8)
# Of the network: short, since two cores are all there is.
TRAIN = "--encoder resnet18 --batch_size 4 --crop_size 160".split()
TRAIN += ["--threads", "1", "--quiet", "--overwrite"]


def main(argv: Sequence[str]) -> int:
    """Make the runs that are missing and print the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.selection")
    parser.add_argument("--root", required=True, help="folder of uhcs and nasa/EBC1")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--start", nargs="+", default=["random", "typiclust"])
    parser.add_argument("--seeds", type=int, help="10; 3 with --network")
    parser.add_argument("--network", action="store_true")
    parser.add_argument("--steps", type=int, default=150, help="of a training with --network")
    parser.add_argument("--output_dir", default="experiments/selection")
    args = parser.parse_args(argv)
    out, root = Path(args.output_dir), Path(args.root)
    out.mkdir(parents=True, exist_ok=True)
    _specimens(root, out / "uhcs.csv")
    if args.network:
        return _with_network(root, args.sets, out, args.seeds or 3, args.steps)
    for name in args.sets:
        told = [word.format(out=out, root=root) for word in SETS[name]]
        for start in args.start:
            run = f"{name.split('/')[-1]}-{start}"
            words = ["filters", str(root / name), *told, "--learning_curve", "--name", run]
            words += ["--arms", *ARMS, "--budgets", *map(str, BUDGETS), "--start", start]
            words += ["--seeds", str(args.seeds or 10), "--output_dir", str(out), "--threads", "1"]
            there = (out / "learning_curve" / run / "curve.csv").is_file()
            code = guard(select_images.main, [*words, "--quiet", *(["--resume"] if there else [])])
            if code:
                return code
            print(_table(name, start, rows(out / "learning_curve" / run / "areas.csv")))
    return 0


def _with_network(root: Path, sets: Sequence[str], out: Path, seeds: int, steps: int) -> int:
    """Make the rounds that are missing and print the table; returns 0."""
    table = out / "network.csv"
    for name in sets:
        splits = root / "PROTOCOL.json" if name == "uhcs" else None
        regex = None if name == "uhcs" else "^([^_]+)_"
        own = layouts.find(
            root / name,
            splits=splits,
            specimens=out / "uhcs.csv" if name == "uhcs" else None,
            group_regex=regex,
            opened=("train", "val"),
        )
        pairs = [pair for pair in own.pairs if pair.split in ("train", "val") and pair.mask]
        place = _copied(out / name.split("/")[-1], pairs)
        for seed in range(seeds):
            _, val = specimens.cut_validation(pairs, 1 / 3, seed)
            scored = sorted(pair.image.name for pair in val)
            groups = {p.image.name: p.group for p in pairs if p.image.name not in scored}
            for arm in (DEFAULT, "random"):
                code = _rounds(place, table, (name, arm, seed), groups, scored, steps)
                if code:
                    return code
    print(_summary(rows(table), sets, seeds))
    return 0


def _copied(place: Path, pairs: Sequence[Pair]) -> Path:
    for pair in pairs:
        assert pair.mask is not None
        for kind, path in (("images", pair.image), ("masks", pair.mask)):
            link = place / kind / f"{pair.image.stem}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path.resolve())
    return place


def _rounds(
    place: Path,
    table: Path,
    job: tuple[str, str, int],
    groups: Mapping[str, str],
    scored: Sequence[str],
    steps: int,
) -> int:
    """Train, score and choose until the last budget is reached; goes on from the table."""
    name, arm, seed = job
    own = [r for r in rows(table) if (r["set"], r["arm"], int(r["seed"])) == job]
    taken = own[-1]["labelled"].split("|") if own else []
    run = f"{arm}-{seed}"
    words = ["--finetune_dataset", str(place), "--output_dir", str(place), "--name", run]
    for budget in BUDGETS:
        if budget <= len(taken):
            continue
        left = sorted(set(groups) - set(taken))
        if not taken or arm == "random":
            # The first picture is the same for both: nothing is known of any.
            order = rng.generator(seed, len(taken), 0, stream=rng.SUBSETS).permutation(len(left))
            taken += [left[i] for i in order[: budget - len(taken)]]
        else:
            pool = place / "pools" / run
            shutil.rmtree(pool, ignore_errors=True)
            pool.mkdir(parents=True)
            for image in left:
                (pool / image).symlink_to((place / "images" / image).resolve())
            lines = ["image,specimen", *(f"{image},{groups[image]}" for image in left)]
            (pool / "specimens.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            ask = [str(place / "finetune" / run), str(pool), "--n", str(budget - len(taken))]
            ask += ["--output_dir", str(place), "--name", "choice", "--overwrite", "--again"]
            code = guard(select_images.main, [*ask, "--seed", str(seed), "--quiet"])
            if code:
                return code
            taken += (place / "select" / run / "choice" / "chosen.txt").read_text().split()
        given = ["--training_set", *taken, "--validation_set", *scored, "--seed", str(seed)]
        given += ["--steps", str(steps), "--val_every", str(steps)]
        code = guard(importlib.import_module("train_finetune").main, [*words, *given, *TRAIN])
        if code:
            return code
        score = rows(place / "finetune" / run / "log.csv")[-1]["val_miou"]
        row = {"set": name, "arm": arm, "seed": seed, "pictures": budget, "miou": score}
        append(table, row | {"labelled": "|".join(taken)})
    return 0


def _summary(made: Sequence[dict[str, str]], sets: Sequence[str], seeds: int) -> str:
    lines = ["| set | method | mIoU at 1 | 2 | 4 | 8 | area % | beyond random |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in sets:
        under: dict[str, list[float]] = {}
        for arm in ("random", DEFAULT):
            scores = [
                [
                    float(r["miou"])
                    for r in made
                    if (r["set"], r["arm"], int(r["seed"])) == (name, arm, seed)
                ]
                for seed in range(seeds)
            ]
            under[arm] = [area(BUDGETS, one) for one in scores]
            means = [100 * sum(column) / seeds for column in zip(*scores, strict=True)]
            gain, half = intervals.paired(under["random"], under[arm])
            told = "–" if arm == "random" else f"{100 * gain:+.1f} ± {100 * half:.1f}"
            cells = [f"{mean:.1f}" for mean in means]
            own = f"{100 * sum(under[arm]) / seeds:.1f}"
            lines.append(f"| {' | '.join([name, arm, *cells, own, told])} |")
    return "\n".join(lines)


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
