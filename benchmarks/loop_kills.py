"""A loop that is killed again and again: ``python -m benchmarks.loop_kills``.

Three rounds of the closed loop on synthetic micrographs, with an annotator who copies the truth of
what is asked for, are run once unbroken and then with SIGKILLs at random moments of their time. The
ledger but for its times, the tensors of every model, what was promoted and the masks laid out to be
corrected must be those of the unbroken loop. The table grows by a row a loop; what it holds is not
run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

# Before torch: a process that has started threads of OpenMP cannot be forked.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import campaign  # noqa: E402
from benchmarks.kills import child  # noqa: E402
from matssl.core import checkpoint  # noqa: E402
from matssl.core.errors import guard  # noqa: E402
from matssl.core.ledger import Ledger, Line  # noqa: E402
from matssl.data import synthetic  # noqa: E402
from matssl.loop import turn  # noqa: E402
from matssl.tools import loop  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PICTURES, FIRST, ROUNDS, SIDE = 12, 6, 3, 64
TRAINING = {"encoder": "tu-test_resnet", "crop_size": 32, "batch_size": 2, "checkpoint_every": 2}
WORDS = ["--once", "--settle", "0", "--n", "2", "--steps", "8", "--device", "cpu", "--quiet"]
WORDS += ["--precision", "fp32", "--threads", "1", "--method", "entropy", "--promote", "rising"]
# Loaded before the first process is made, so that none of them spends its life on that.
LOADED = turn
# A loop is killed so often before it is let be.
MOST = 8


class World:
    """A folder with pictures, and their truth for the annotator."""

    def __init__(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        self.root, self.truth, self.training = root / "in", root / "truth", root / "training.json"
        for folder in (self.root, self.truth, self.root / "corrected"):
            folder.mkdir(parents=True)
        self.training.write_text(json.dumps(TRAINING), encoding="utf-8")
        for number in range(PICTURES):
            image, mask = synthetic.micrograph("two_phase", SIDE, SIDE, number)
            name = f"specimen{chr(65 + number)}_1.png"
            cv2.imwrite(str(self.root / name), image)
            cv2.imwrite(str(self.truth / name), mask)
        self.correct([f"specimen{chr(65 + number)}_1.png" for number in range(FIRST)])

    def correct(self, names: list[str]) -> None:
        """Copy the truth of pictures to where corrected masks come."""
        for name in names:
            shutil.copy(self.truth / name, self.root / "corrected" / name)

    @property
    def argv(self) -> list[str]:
        """The command line of the loop."""
        return [str(self.root), *WORDS, "--training", str(self.training)]

    @property
    def lines(self) -> list[Line]:
        """Lines of its ledger."""
        return Ledger.open(self.root / "loop" / "ledger.jsonl", repair=False).lines

    def waiting(self) -> list[str]:
        """Return what was asked for last."""
        rounds = [line for line in self.lines if line.step == "select"]
        return [entry["name"] for entry in rounds[-1].facts["pictures"]] if rounds else []


def main() -> int:
    """Kill what is missing of the campaign; returns 1 where a loop came to something else."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--table", type=Path, default=Path("experiments/loop_kills.csv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    table = args.table.resolve()
    table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="loop-kills-") as folder:
        _run_all(Path(folder), args.kills, table)
    rows = campaign.rows(table)
    killed, other = sum(int(row["kills"]) for row in rows), [r for r in rows if r["equal"] != "yes"]
    print(
        f"{killed} SIGKILLs in {len(rows)} loops of {ROUNDS} rounds: {len(rows) - len(other)} "
        f"equal, {len(other)} not"
    )
    return int(bool(other))


def _run_all(folder: Path, kills: int, table: Path) -> None:
    whole, started = World(folder / "whole"), time.monotonic()
    _loop(whole, None, 0, 0.0)
    seconds = time.monotonic() - started
    print(f"unbroken: {len(whole.lines)} lines in {seconds:.0f} s", flush=True)
    done = campaign.rows(table)
    number, killed = len(done), sum(int(row["kills"]) for row in done)
    while killed < kills:
        world = World(folder / "broken")
        most = min(MOST, kills - killed)
        count = _loop(world, np.random.default_rng([number, 3]), most, seconds)
        row = {"number": number, "kills": count, "lines": len(world.lines)}
        campaign.append(table, {**row, "equal": same(whole, world)})
        number, killed = number + 1, killed + count


def _loop(world: World, rng: np.random.Generator | None, most: int, seconds: float) -> int:
    """Run a loop to its end, killed at random moments; return how often it was."""
    kills = 0
    for number in range(ROUNDS):
        while True:
            # One moment of three lies beyond the end of a round, which then is not killed.
            late = None
            if rng is not None and kills < most:
                late = float(rng.uniform(0.0, 1.5)) * seconds / ROUNDS
            code = child(partial(guard, loop.main, world.argv), late)
            if code == 0:
                break
            if code != -signal.SIGKILL:
                raise SystemExit(f"the loop ended with exit code {code}")
            kills += 1
        if number < ROUNDS - 1:
            world.correct(world.waiting())
    return kills


def same(sound: World, other: World) -> str:
    """Return "yes" where two loops came to the same, or what differs."""
    stories = [[_told(line) for line in world.lines] for world in (sound, other)]
    for number, (a, b) in enumerate(zip(*stories, strict=False), start=1):
        if a != b:
            return f"no: line {number} ({a[0]}, {b[0]})"
    if len(stories[0]) != len(stories[1]):
        return f"no: {len(stories[0])} and {len(stories[1])} lines"
    for path in sorted((sound.root / "loop" / "finetune").glob("*/best.ckpt")):
        twin = other.root / path.relative_to(sound.root)
        if not twin.is_file() or not _equal(path, twin):
            return f"no: model {path.parent.name}"
    laid = [_files(world.root / "to_correct") for world in (sound, other)]
    if laid[0] != laid[1]:
        return "no: masks to correct"
    best = [os.readlink(world.root / "loop" / "best.ckpt") for world in (sound, other)]
    if best[0] != best[1]:
        return "no: the best model"
    left = [path.name for path in (other.root / "loop").rglob(".*") if path.name != ".lock"]
    return f"no: left {left[0]}" if left else "yes"


def _told(line: Line) -> tuple[str, dict[str, Any]]:
    """Return a line without its time, and without where the settings lie."""
    return line.step, {k: v for k, v in line.facts.items() if k != "training"}


def _equal(first: Path, second: Path) -> bool:
    a, b = (checkpoint.load(path)["state"] for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _files(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
