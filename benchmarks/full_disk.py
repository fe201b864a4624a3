"""A disk that is full at every write of every stage: ``python -m benchmarks.full_disk``.

A library before the C library (``full_disk.c``, built with gcc) counts the calls of a stage that
need room. Then the stage is run again and again, and from one of these calls on all of them fail
with "No space left on device". Held against it: exit code 2 and one line; no file of a run is half
a file and nothing stays beside it; and when there is room again, a training that had begun goes on
to the bits of the unbroken run (every third is tried).

Of calls that follow each other for one file (the writes of one checkpoint) the first and the last
are tried, of files that are written again and again the first time. The table grows by a row a
case; what it holds is not run again.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("pretraining", "fine-tuning", "evaluation", "phase map", "objects")
PRELOADED = "MATSSL_FULL_DISK"


def main() -> int:
    """Run what is missing of the campaign; returns 1 where something did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=Path("experiments/full_disk.csv"))
    parser.add_argument("--stages", nargs="*", default=list(STAGES), choices=STAGES)
    args = parser.parse_args()
    if PRELOADED not in os.environ:
        return _again_with_library()
    from benchmarks import campaign

    table = args.table.resolve()
    table.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="full-") as folder:
        stage = Stage(Path(folder))
        done = {(row["stage"], int(row["call"])) for row in campaign.rows(table)}
        for name in args.stages:
            calls = stage.calls(name)
            for number, what in _chosen(calls):
                if (name, number) not in done:
                    held = stage.full(name, number)
                    row = {"stage": name, "calls": len(calls), "call": number, "what": what}
                    campaign.append(table, {**row, "held": held})
    rows = campaign.rows(table)
    for name in STAGES:
        own = [row for row in rows if row["stage"] == name]
        bad = [row for row in own if row["held"] != "yes"]
        calls = own[0]["calls"] if own else 0
        print(f"| {name} | {calls} | {len(own)} | {len(own) - len(bad)} | {len(bad)} |")
    return int(any(row["held"] != "yes" for row in rows))


def _again_with_library() -> int:
    """Build the library and run this command again behind it."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "full_disk.so"
        source = Path(__file__).with_suffix(".c")
        command = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        more = {PRELOADED: str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "benchmarks.full_disk", *sys.argv[1:]]
        return subprocess.run(words, env=os.environ | more).returncode


def _chosen(calls: Sequence[tuple[str, str]]) -> list[tuple[int, str]]:
    """Return the numbers of the calls that are tried, each with what it is in words."""
    runs: list[list[int]] = []
    for number, call in enumerate(calls, start=1):
        if runs and calls[runs[-1][-1] - 1] == call:
            runs[-1].append(number)
        else:
            runs.append([number])
    tried = [sorted({run[0], run[-1]}) for run in runs]
    # Tables grow by a call a step: of equal places the first is tried.
    seen: dict[str, int] = {}
    kept = []
    for numbers in tried:
        what, path = calls[numbers[0] - 1]
        words = f"{what} {path}"
        seen[words] = seen.get(words, 0) + 1
        if seen[words] == 1:
            kept += [(number, words) for number in numbers]
    return kept


class Stage:
    """Small runs of every stage in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        import cv2
        import torch

        from matssl.data import synthetic

        # A process that has had threads of its libraries cannot be forked.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.library = ctypes.CDLL(os.environ[PRELOADED])
        self.folder, self.out = folder, folder / "out"
        os.chdir(folder)
        synthetic.write_pool(folder / "pool", n=8, size=64, seed=1)
        counts = {"n_train": 3, "n_val": 1, "n_test": 2}
        synthetic.write_dataset(folder / "set", "two_phase", **counts, size=64, seed=0)
        self.sound = folder / "sound"
        # The models that later stages need, made with room enough.
        for name in ("pretraining", "fine-tuning", "evaluation"):
            assert self._child(name, self.sound / name, 0)[0] == 0

    def calls(self, name: str) -> list[tuple[str, str]]:
        """Return the calls of a stage that need room: kind and file, in their order."""
        shutil.rmtree(self.out, ignore_errors=True)
        if name not in ("pretraining", "fine-tuning", "evaluation"):
            assert self._child(name, self.sound / name, 0)[0] == 0
        code, _, log = self._child(name, self.out, -1)
        assert code == 0
        lines = [line.split("\t") for line in log.splitlines()]
        # The random part of temporary names, and the folder.
        plain = [
            (what, re.sub(r"\.[a-z0-9_]{8}(?=\.|/|$)|\.\d+$", "", path.replace(str(self.out), "")))
            for _, what, path in lines
        ]
        return [(what, path or "/") for what, path in plain]

    def full(self, name: str, at: int) -> str:
        """Return "yes", or what did not hold where the disk is full from a call on."""
        shutil.rmtree(self.out, ignore_errors=True)
        code, err, _ = self._child(name, self.out, at)
        lines = [line for line in err.splitlines() if line.strip()]
        if code == 0:
            # A picture for people may be missing; what is there is whole.
            return self._whole() or "yes"
        if code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            return f"exit code {code}: {lines[-1][:120] if lines else ''} ({len(lines)} lines)"
        if not re.search("disk is full|No space left", lines[0]):
            return f"said otherwise: {lines[0][:120]}"
        # Every third training goes on; each takes as long as the run itself.
        return self._whole() or (self._goes_on(name) if at % 3 == 0 else "") or "yes"

    def _whole(self) -> str:
        """Return which file is half a file, "" where all are whole."""
        from matssl.core import checkpoint

        for path in sorted(self.out.rglob("*")):
            place = path.relative_to(self.out)
            if path.name.startswith(".") and path.is_file():
                return f"left {place}"
            try:
                if path.suffix == ".ckpt":
                    checkpoint.load(path)
                elif path.suffix == ".safetensors":
                    from matssl import weights

                    weights.read(path)
                elif path.suffix == ".json" and path.is_file():
                    json.loads(path.read_text(encoding="utf-8"))
                elif path.suffix == ".png" and path.is_file():
                    from matssl.data import readers

                    readers.read_mask(path)
                elif path.suffix == ".tif" and path.is_file():
                    import tifffile

                    tifffile.imread(path)
                elif path.suffix == ".csv":
                    with open(path, encoding="utf-8", newline="") as file:
                        rows = list(csv.reader(file))
                    # A line that was being added may be half; the next resumption drops it.
                    if any(len(row) != len(rows[0]) for row in rows[1:-1]):
                        return f"torn {place}"
            except Exception as error:
                return f"half {place}: {str(error)[:80]}"
        return ""

    def _goes_on(self, name: str) -> str:
        """Return how a training differs that goes on when there is room, "" where it does not."""
        if name not in ("pretraining", "fine-tuning"):
            return ""
        begun = list(self.out.rglob("last.ckpt"))
        code, err, _ = self._child(name, self.out, 0, "--resume" if begun else "--overwrite")
        if code != 0:
            return f"does not go on: {err.strip()[-160:]}"
        from benchmarks.kills import same

        stage = "ssl" if name == "pretraining" else "finetune"
        found = same(self.sound / name / stage / "x", self.out / stage / "x")
        return "" if found == "yes" else found

    def _child(self, name: str, out: Path, at: int, *more: str) -> tuple[int, str, str]:
        """Run a stage in a process of its own; return exit code, stderr and the log of calls.

        Args:
            name: of the stage.
            out: where it writes.
            at: the call from which on the disk is full; 0: never and nothing counted; -1: never.
            more: flags.
        """
        module, *argv = self._argv(name, out)
        prints = [self.folder / f"{kind}.txt" for kind in ("stdout", "stderr", "calls")]
        child = os.fork()
        if child == 0:
            code = 70
            try:
                handles = [os.open(p, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for p in prints]
                for number in (0, 1):
                    os.dup2(handles[number], number + 1)
                if at:
                    place = str(out).encode()
                    self.library.full_disk_at(place, ctypes.c_long(at), handles[2])
                from matssl.core.errors import guard

                code = guard(importlib.import_module(module).main, [*argv, *more])
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _, err, log = (path.read_text(encoding="utf-8", errors="replace") for path in prints)
        return code, err, log

    def _argv(self, name: str, out: Path) -> list[str]:
        common = ["--threads", "1", "--precision", "fp32", "--device", "cpu", "--quiet"]
        run = ["--name", "x", "--output_dir", str(out), "--encoder", "tu-test_resnet"]
        run += ["--checkpoint_every", "2"]
        pool, labelled = str(self.folder / "pool"), str(self.folder / "set")
        tuned, ssl = (self.sound / n for n in ("fine-tuning/finetune/x", "pretraining/ssl/x"))
        commands: dict[str, list[str]] = {
            "pretraining": [
                *("train_ssl", "--data_path", pool, "--steps", "4", "--view_size", "32"),
                *("--tile_size", "48", "--batch_size", "4", "--cache_dir", str(out / "cache")),
                *(*run, *common, "--snapshot_every", "3", "--probe_path", labelled),
            ],
            "fine-tuning": [
                *("train_finetune", "--finetune_dataset", labelled, "--steps", "4"),
                *("--crop_size", "32", "--batch_size", "2", "--val_every", "2", *run, *common),
                *("--snapshot_every", "3"),
            ],
            "evaluation": [
                *("eval_model", "--model_path", str(tuned), "--dataset", labelled),
                *("--output_dir", str(out), "--name", "x"),
                *("--save_visualizations", "--save_probabilities"),
                *common,
            ],
            "phase map": [
                *(
                    "matssl.tools.phase_map",
                    "--model_path",
                    str(ssl),
                    "--data",
                    pool,
                    "--phases",
                    "2",
                ),
                *("--output_dir", str(out), *common),
            ],
            "objects": [
                *("matssl.tools.measure", str(self.sound / "evaluation/eval/x")),
                *("--what", "objects"),
                *("--output_dir", str(out)),
            ],
        }
        return commands[name]


if __name__ == "__main__":
    sys.exit(main())
