"""Runs that are killed again and again, and what they come to: ``python -m benchmarks.kills``.

Each method of pretraining, fine-tuning and a cross-validation are run once unbroken and then
several times with SIGKILL at random moments of their time, resumed after each, killed again or
not. Every tensor of the last checkpoint, the encoder file and the log of losses (of a
cross-validation those of each fold, the ensemble and the masks) must be those of the unbroken run,
bit for bit. The table grows by a row a run; what it holds is not run again.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Before torch: a process that has started threads of OpenMP cannot be forked.
os.environ["OMP_NUM_THREADS"] = "1"

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks import campaign  # noqa: E402
from matssl.core import checkpoint  # noqa: E402
from matssl.core.errors import guard  # noqa: E402
from matssl.data import synthetic  # noqa: E402
from matssl.methods import distinct, settings_class  # noqa: E402
from matssl.methods.settings import GuidedSettings  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
COMMON = ["--encoder", "tu-test_resnet", "--threads", "1", "--precision", "fp32", "--device", "cpu"]
COMMON += ["--quiet", "--checkpoint_every", "2", "--name", "x"]
SSL = [*COMMON, "--steps", "8", "--view_size", "32", "--tile_size", "48", "--batch_size", "6"]
TUNE = [*COMMON, "--steps", "10", "--crop_size", "32", "--batch_size", "2", "--val_every", "3"]
TUNED, FOLDED = "fine-tuning", "cross-validation"
# What a run can go on from.
BEGUN = ("last.ckpt", "last.prev.ckpt", "cross_validation.json")
# A run may be killed so often before it is let be.
MOST = 3


def main() -> int:
    """Kill what is missing of the campaign; returns 1 where a run came to other bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--table", type=Path, default=Path("experiments/kills.csv"))
    parser.add_argument("--only", nargs="*", default=[], help="these kinds of runs alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        _run_all(Path(folder), args.kills, args.table.resolve(), args.only)
    rows = campaign.rows(args.table)
    killed, other = sum(int(row["kills"]) for row in rows), [r for r in rows if r["equal"] != "yes"]
    print(
        f"{killed} SIGKILLs in {len(rows)} runs of {len({r['run'] for r in rows})} kinds: "
        f"{len(rows) - len(other)} equal, {len(other)} not"
    )
    return int(bool(other))


def _run_all(folder: Path, kills: int, table: Path, only: Sequence[str] = ()) -> None:
    os.chdir(folder)
    synthetic.write_pool(folder / "pool", n=12, size=96, seed=1)
    synthetic.write_dataset(
        folder / "set", "two_phase", n_train=4, n_val=2, n_test=1, size=96, seed=0
    )
    whole: dict[str, tuple[Path, float]] = {}
    kinds = [*(only or distinct()), *([] if only else [TUNED, FOLDED])]
    done = campaign.rows(table)
    number, killed = len(done), sum(int(row["kills"]) for row in done)
    while killed < kills:
        kind = kinds[number % len(kinds)]
        if kind not in whole:
            started = time.monotonic()
            out = folder / f"whole-{kind}"
            assert _child(_argv(kind, folder, out), None) == 0, kind
            whole[kind] = out, time.monotonic() - started
        sound, seconds = whole[kind]
        rng = np.random.default_rng([number, 7])
        count, equal, last = _killed(kind, folder, sound, seconds, rng)
        # The machine may have become faster or slower.
        whole[kind] = sound, last
        campaign.append(table, {"number": number, "run": kind, "kills": count, "equal": equal})
        number, killed = number + 1, killed + count


def _argv(kind: str, folder: Path, out: Path) -> list[str]:
    if kind in (TUNED, FOLDED):
        folds = ["--folds", "2"] if kind == FOLDED else []
        return [
            "train_finetune",
            "--finetune_dataset",
            str(folder / "set"),
            *(TUNE + folds),
            "--output_dir",
            str(out),
        ]
    more = (
        ["--labeled_path", str(folder / "set")]
        if issubclass(settings_class(kind), GuidedSettings)
        else []
    )
    return [
        "train_ssl",
        "--data_path",
        str(folder / "pool"),
        "--model",
        kind,
        *SSL,
        *more,
        "--cache_dir",
        str(out / "cache"),
        "--output_dir",
        str(out),
    ]


def _killed(
    kind: str, folder: Path, sound: Path, seconds: float, rng: np.random.Generator
) -> tuple[int, str, float]:
    """Return how often a run was killed, if it came to the unbroken one's bits, and a run's time.

    The time is that of all of its parts together, in seconds.
    """
    began = time.monotonic()
    out = folder / "broken"
    shutil.rmtree(out, ignore_errors=True)
    stage = "finetune" if kind in (TUNED, FOLDED) else "ssl"
    run, kills = out / stage / "x", 0
    while True:
        begun = any((run / name).is_file() for name in BEGUN)
        argv = [*_argv(kind, folder, out), "--resume" if begun else "--overwrite"]
        moment = float(rng.uniform(0.02, 1.0)) * seconds if kills < MOST else None
        code = _child(argv, moment)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            return kills, f"exit code {code}", seconds
        kills += 1
    taken = time.monotonic() - began
    alike = same_folds if kind == FOLDED else same
    return kills, alike(sound / stage / "x", run), min(taken, seconds)


def _child(argv: Sequence[str], moment: float | None) -> int:
    return child(lambda: guard(importlib.import_module(argv[0]).main, list(argv[1:])), moment)


def child(run: Callable[[], int], moment: float | None) -> int:
    """Run a command in a process of its own, killed after so many seconds; its exit code."""
    process = os.fork()
    if process == 0:
        try:
            # What is printed is of no use here.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(run())
        except BaseException:
            import traceback

            traceback.print_exc()
        os._exit(70)
    end = None if moment is None else time.monotonic() + moment
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            end = None
        time.sleep(0.001)


def same(sound: Path, run: Path) -> str:
    """Return "yes" where two runs came to the same bits and left nothing else, or what differs."""
    for name in ("last.ckpt", "best.ckpt"):
        if not (sound / name).is_file():
            continue
        a, b = (checkpoint.load(folder / name) for folder in (sound, run))
        if not _equal([a["state"], a.get("optimizer")], [b["state"], b.get("optimizer")]):
            return f"no: {name}"
    encoder = "encoder.safetensors"
    if (sound / encoder).is_file():
        if (sound / encoder).read_bytes() != (run / encoder).read_bytes():
            return f"no: {encoder}"
    logs = [_losses(folder / "metrics.jsonl") for folder in (sound, run)]
    if logs[0] != logs[1]:
        return "no: metrics.jsonl"
    left = [path.name for path in run.rglob(".*")]
    return f"no: left {left[0]}" if left else "yes"


def same_folds(sound: Path, run: Path) -> str:
    """Return "yes" where two cross-validations came to the same models, masks and counts."""
    for fold in sorted(sound.glob("fold_*")):
        found = same(fold, run / fold.name)
        if found != "yes":
            return f"{found} of {fold.name}"
    a, b = (checkpoint.load(folder / "ensemble.ckpt") for folder in (sound, run))
    if not _equal(a["state"], b["state"]):
        return "no: ensemble.ckpt"
    files = [*sorted(sound.glob("masks/**/*.png")), sound / "confusion.json"]
    for file in files:
        if file.read_bytes() != (run / file.relative_to(sound)).read_bytes():
            return f"no: {file.name}"
    left = [path.name for path in run.rglob(".*")]
    return f"no: left {left[0]}" if left else "yes"


def _losses(path: Path) -> list[object]:
    import json

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    # How long a step waited for its data is of the process.
    return [{k: v for k, v in row.items() if k != "wait_share"} for row in rows]


def _equal(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
