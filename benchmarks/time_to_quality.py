"""Validation mIoU against seconds: settings of fine-tuning beside the plain U-Net; resumable.

    python -m benchmarks.time_to_quality --data DATA run --sets uhcs tem/bubble_512 --seeds 0 1 2
    python -m benchmarks.time_to_quality --data DATA table      # rows of RESULTS.md, and curve.png

Every run is a process of its own, and its clock starts with the process: imports, reading and
validation count. Of the toolkit all seconds count, to the end of the command (temperature and
report); of the plain U-Net (``plain_unet.py``, 500 steps) those to its last validation. For each
set and seed the plain U-Net and every setting run one after the other on the same machine. No test
image is opened. A run whose result exists is skipped. ``--setting NAME "FLAGS"`` adds settings.

Beside the wall clock the seconds that the process itself computed are kept: where other programs
share the cores, and one thread works (``--threads 1``), they are the ones to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core.run_folder import environment

ROOT = Path(__file__).resolve().parent.parent
SETS = ("uhcs", "tem/bubble_512", "nasa/EBC1")
PLAIN, AIM = "plain", 0.25
LITE = "--encoder tu-tf_efficientnet_lite0 --ssl_weights_path imagenet-efficientnet-lite0"
SETTINGS = {
    "default, 500 steps": "",
    "default, 125 steps": "--steps 125 --val_every 125",
    "ImageNet lite0, 500 steps": LITE,
    "ImageNet lite0, 100 steps": f"{LITE} --steps 100 --val_every 50",
    "ImageNet lite0, 150 steps": f"{LITE} --steps 150 --val_every 75",
    "ImageNet lite0, 100 steps, 2e-3, 0.95": (
        f"{LITE} --steps 100 --val_every 50 --lr 2e-3 --warmup 0.2 --ema 0.95"
    ),
    "ImageNet lite0, 200 steps, 128 px": f"{LITE} --steps 200 --crop_size 128 --val_every 100",
}
OURS = re.compile(r"step (\d+)/\d+: .*validation mIoU ([0-9.]+)")
THEIRS = re.compile(r"step (\d+) .*val mIoU ([0-9.]+)")


@dataclass(frozen=True)
class Plan:
    data: Path
    out: Path
    threads: int
    device: str
    settings: dict[str, str]

    @property
    def splits(self) -> Path:
        return self.data / "PROTOCOL.json"

    def result(self, dataset: str, name: str, seed: int) -> Path:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{dataset} {name}").strip("-")
        return self.out / "results" / f"{words}-{seed}.json"

    def command(self, dataset: str, name: str, seed: int) -> list[str]:
        """Return the words of a run."""
        given = ["--splits", self.splits, "--seed", seed, "--threads", self.threads]
        given += ["--device", self.device]
        if name == PLAIN:
            words = ["-m", "benchmarks.plain_unet", self.data / dataset, "--validation_only"]
            return [sys.executable, *map(str, [*words, *given])]
        run = self.result(dataset, name, seed).stem
        words = ["train_finetune.py", "--finetune_dataset", self.data / dataset, *given]
        words += ["--output_dir", self.out / "runs", "--name", run, "--overwrite"]
        return [sys.executable, *map(str, words), *shlex.split(self.settings[name])]


def computed(process: int) -> float:
    """Return the seconds that a process has computed; NaN where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(words: list[str], pattern: re.Pattern[str], share: float) -> dict[str, Any]:
    """Run a command and return its validations with the seconds at which they came.

    Args:
        words: of the command.
        pattern: of the lines that tell of a validation: step and mIoU.
        share: that makes its mIoU one of 1.
    """
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    start, lines, points = time.monotonic(), [], []
    process = subprocess.Popen(
        words, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if found := pattern.search(line):
            point = {"step": int(found[1]), "miou": share * float(found[2])}
            point |= {"seconds": time.monotonic() - start, "computed": computed(process.pid)}
            points.append(point)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not points:
        sys.exit(f"failed ({process.returncode}): {shlex.join(words)}\n{''.join(lines[-20:])}")
    own = usage.ru_utime + usage.ru_stime
    return {"points": points, "seconds": time.monotonic() - start, "computed": own}


def run(plan: Plan, sets: list[str], seeds: list[int], names: list[str]) -> None:
    (plan.out / "results").mkdir(parents=True, exist_ok=True)
    facts = environment()
    for seed in seeds:
        for dataset in sets:
            for name in names:
                path = plan.result(dataset, name, seed)
                if path.exists():
                    continue
                words = plan.command(dataset, name, seed)
                print("$", shlex.join(words[1:]), flush=True)
                kind = (THEIRS, 1.0) if name == PLAIN else (OURS, 0.01)
                result = timed(words, *kind)
                if name == PLAIN:
                    # What follows its last validation is none of its business here.
                    last = result["points"][-1]
                    result |= {"seconds": last["seconds"], "computed": last["computed"]}
                result |= {"dataset": dataset, "name": name, "seed": seed}
                result |= {"flags": plan.settings.get(name, ""), "device": plan.device}
                result |= {"processor": facts["processor"], "commit": facts["commit"]}
                path.write_text(json.dumps(result, indent=1))
                best = max(point["miou"] for point in result["points"])
                print(f"  mIoU {100 * best:.1f} in {result['seconds']:.0f} s", flush=True)


def best(result: dict[str, Any]) -> float:
    """Return the validation mIoU of the model that a run keeps."""
    return max(float(point["miou"]) for point in result["points"])


def gathered(plan: Plan) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """Return the results by set and name, then by seed."""
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted((plan.out / "results").glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault((result["dataset"], result["name"]), {})[result["seed"]] = result
    return found


def table(plan: Plan, clock: str) -> None:
    """Print a row for each set and setting, means over the seeds that both it and the plain have.

    Args:
        plan: where the results lie.
        clock: "seconds" (wall) or "computed".
    """
    found = gathered(plan)
    unit = "wall" if clock == "seconds" else "computed"
    print(f"| set | setting | val mIoU | plain U-Net | s ({unit}) | plain's | share | seeds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for (dataset, name), results in found.items():
        plain = found.get((dataset, PLAIN), {})
        seeds = sorted(results.keys() & plain.keys())
        if name == PLAIN or not seeds:
            continue
        ours = 100 * np.mean([best(results[seed]) for seed in seeds])
        theirs = 100 * np.mean([best(plain[seed]) for seed in seeds])
        own, other = (np.mean([r[seed][clock] for seed in seeds]) for r in (results, plain))
        mark = "**" if ours >= theirs and own <= AIM * other else ""
        print(
            f"| {dataset} | {name} | {ours:.1f} | {theirs:.1f} | {own:.0f} | {other:.0f} | "
            f"{mark}{own / other:.2f}{mark} | {len(seeds)} |"
        )
    print(f"\nBold: the plain U-Net's final score or more in {AIM:g} of its time or less.")
    curve(plan, clock)


def curve(plan: Plan, clock: str) -> None:
    """Draw the best validation mIoU so far against the seconds, a panel for each set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = gathered(plan)
    sets = list(dict.fromkeys(dataset for dataset, _ in found))
    names = list(dict.fromkeys(name for _, name in found))
    if not sets:
        sys.exit(f"no results in {plan.out}")
    figure, axes = plt.subplots(1, len(sets), figsize=(4.2 * len(sets), 3.6), squeeze=False)
    colours = dict(zip(sorted(names, key=lambda n: n != PLAIN), plt.cm.tab10.colors, strict=False))
    for axis, dataset in zip(axes[0], sets, strict=True):
        for name in names:
            for number, result in enumerate(found.get((dataset, name), {}).values()):
                points = result["points"]
                seconds = [point[clock] for point in points] + [result[clock]]
                miou = list(np.maximum.accumulate([100 * point["miou"] for point in points]))
                label = name if number == 0 else None
                line = {"color": colours[name], "drawstyle": "steps-post", "label": label}
                axis.plot(seconds, [*miou, miou[-1]], marker=".", **line)
        axis.set(title=dataset, xlabel="seconds since the command was given", ylim=(0, 100))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("validation mIoU, best so far (%)")
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    path = plan.out / "curve.png"
    figure.savefig(path, dpi=120)
    print(f"curve: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the real micrographs")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "time_to_quality")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument(
        "--only", nargs="+", help="names of settings, or plain; all where not given"
    )
    parser.add_argument(
        "--setting", nargs=2, action="append", default=[], metavar=("NAME", "FLAGS")
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--clock", default="seconds", choices=("seconds", "computed"))
    args = parser.parse_args()
    settings = SETTINGS | dict(args.setting)
    plan = Plan(args.data.resolve(), args.out.resolve(), args.threads, args.device, settings)
    names = [PLAIN, *settings]
    if unknown := set(args.only or ()) - set(names):
        parser.error(f"--only knows {', '.join(names)}, not {', '.join(sorted(unknown))}")
    if args.what == "run":
        run(plan, args.sets, args.seeds, args.only or names)
    else:
        table(plan, args.clock)


if __name__ == "__main__":
    main()
