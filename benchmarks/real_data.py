"""SSL, fine-tuning and evaluation on real micrographs, beside the plain U-Net; resumable.

    python -m benchmarks.real_data --data DATA run      # hours on two cores; stop and start at will
    python -m benchmarks.real_data --data DATA table    # the markdown tables of RESULTS.md

Every job is one command of the toolkit (or ``plain_unet.py``) in a process of its own. A job whose
result exists is skipped, so the campaign goes on where it stopped. No test image is read before a
job's last command. The pool holds all of ``ssl_pool``, the labelled sets' training images that are
in no validation or test list of any set, and the training images of uhcs and tem/bubble_512.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from matssl.measure import intervals

ROOT = Path(__file__).resolve().parent.parent
SETS = ("nasa/Super3", "nasa/EBC1", "nasa/EBC3", "uhcs", "tem/bubble_512")
STARTS = ("plain", "random", "ssl")


@dataclass(frozen=True)
class Campaign:
    data: Path
    out: Path
    threads: int
    ssl_steps: int
    finetune: tuple[str, ...]

    @property
    def splits(self) -> Path:
        return self.data / "PROTOCOL.json"

    def result(self, job: str) -> Path:
        return self.out / "results" / f"{job}.json"

    def python(self, *words: object) -> float:
        """Run a command of the toolkit and return its seconds; its output goes to the log."""
        command = [sys.executable, *map(str, words)]
        print("$", " ".join(command[1:]), flush=True)
        start = time.monotonic()
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode:
            sys.exit(f"failed ({done.returncode}); see {self.out / 'log.txt'}")
        return time.monotonic() - start


def pool_list(campaign: Campaign) -> Path:
    """Write the list of labelled sets' training images that may join the pool."""
    safe = campaign.data / "ssl_pool" / "labelled_train" / "LIST_safe_for_all_splits.txt"
    lines = [line for line in safe.read_text().splitlines() if line and line[0] != "#"]
    protocol = json.loads(campaign.splits.read_text())
    for name in ("uhcs", "tem/bubble_512"):
        lines += [f"{name}/images/{image}" for image in protocol[name]["train"]]
    path = campaign.out / "pool.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def pretrain(campaign: Campaign, method: str) -> Path:
    folder = campaign.out / "runs" / "ssl" / method
    words = ["train_ssl.py", "--model", method, "--data_path", campaign.data / "ssl_pool"]
    words += ["--file_list", pool_list(campaign), "--list_root", campaign.data]
    words += ["--steps", campaign.ssl_steps, "--threads", campaign.threads, "--quiet"]
    words += ["--output_dir", campaign.out / "runs", "--name", method]
    if not (folder / "encoder.safetensors").exists() or not campaign.result(method).exists():
        if (folder / "last.ckpt").exists():
            words.append("--resume")
        elif folder.exists():
            words.append("--overwrite")
        seconds = campaign.python(*words)
        campaign.result(method).write_text(json.dumps({"seconds": seconds}))
    return folder / "encoder.safetensors"


def plain(campaign: Campaign, dataset: str, seed: int) -> None:
    job = f"plain-{dataset.replace('/', '-')}-{seed}"
    if campaign.result(job).exists():
        return
    part = campaign.out / "plain.jsonl"
    part.unlink(missing_ok=True)
    words = ["-m", "benchmarks.plain_unet", campaign.data / dataset, "--splits", campaign.splits]
    campaign.python(*words, "--seed", seed, "--threads", campaign.threads, "--out", part)
    campaign.result(job).write_text(part.read_text())


def finetune(campaign: Campaign, dataset: str, start: str, weights: Path | None, seed: int) -> None:
    name = f"{start}-{dataset.replace('/', '-')}-{seed}"
    if campaign.result(name).exists():
        return
    runs = campaign.out / "runs"
    words = ["train_finetune.py", "--finetune_dataset", campaign.data / dataset, "--seed", seed]
    words += ["--splits", campaign.splits, "--threads", campaign.threads, "--quiet", "--overwrite"]
    words += ["--output_dir", runs, "--name", name, *campaign.finetune]
    if weights is not None:
        words += ["--ssl_weights_path", weights]
    seconds = campaign.python(*words)
    result: dict[str, object] = {"seconds": seconds, "dataset": dataset, "seed": seed}
    summary = json.loads((runs / "finetune" / name / "status.json").read_text())
    result["val"] = summary.get("best_miou")
    protocol = json.loads(campaign.splits.read_text())[dataset]
    for split in (split for split in protocol if split.endswith("test")):
        words = ["eval_model.py", "--model_path", runs / "finetune" / name / "best.ckpt"]
        words += ["--dataset", campaign.data / dataset, "--splits", campaign.splits]
        words += ["--split", split, "--threads", campaign.threads, "--quiet", "--overwrite"]
        words += ["--output_dir", runs, "--name", f"{name}-{split}", "--save_visualizations"]
        if seed > 0:
            words.append("--no-baselines")
        campaign.python(*words)
        metrics = json.loads((runs / "eval" / f"{name}-{split}" / "metrics.json").read_text())
        result[f"{split}_miou"] = metrics["pooled"]["means"]["miou"]
        result[f"{split}_iou"] = metrics["pooled"]["classes"]
        if "baselines" in metrics:
            result[f"{split}_baselines"] = metrics["baselines"]
    campaign.result(name).write_text(json.dumps(result))


def run(campaign: Campaign, sets: list[str], starts: list[str], seeds: list[int], ssl: str) -> None:
    (campaign.out / "results").mkdir(parents=True, exist_ok=True)
    weights = pretrain(campaign, ssl) if "ssl" in starts else None
    for seed in seeds:
        for dataset in sets:
            for start in starts:
                if start == "plain":
                    plain(campaign, dataset, seed)
                else:
                    finetune(campaign, dataset, start, weights if start == "ssl" else None, seed)


def scores(campaign: Campaign, start: str, dataset: str, key: str) -> dict[int, float]:
    found = {}
    for path in campaign.result("x").parent.glob(f"{start}-{dataset.replace('/', '-')}-*.json"):
        result = json.loads(path.read_text())
        if key in result:
            found[int(path.stem.rsplit("-", 1)[1])] = 100 * float(result[key])
    return found


def mean_spread(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} (n={len(values)})"


def paired(first: dict[int, float], second: dict[int, float]) -> str:
    """Return the mean of second minus first over common seeds with its 95 % t interval."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return "-"
    gain, half = intervals.paired([first[s] for s in common], [second[s] for s in common])
    if np.isnan(half):
        return f"{gain:+.1f} (n=1)"
    return f"{gain:+.1f} [{gain - half:+.1f}, {gain + half:+.1f}]"


def table(campaign: Campaign) -> None:
    print("| set | plain U-Net | matssl, random | matssl, SSL | random - plain | SSL - random |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = [(dataset, "test_miou") for dataset in SETS]
    rows.insert(1, ("nasa/Super3", "different_test_miou"))
    gains: list[float] = []
    for dataset, key in rows:
        found = {start: scores(campaign, start, dataset, key) for start in STARTS}
        label = dataset + (" (different_test)" if key.startswith("different") else "")
        cells = [mean_spread(list(found[start].values())) for start in STARTS]
        cells += [paired(found["plain"], found["random"]), paired(found["random"], found["ssl"])]
        print(f"| {label} | {' | '.join(cells)} |")
        if found["random"] and found["ssl"]:
            common = found["random"].keys() & found["ssl"].keys()
            gains += [float(np.mean([found["ssl"][s] - found["random"][s] for s in common]))]
    if gains:
        print(f"\nMean gain of SSL over random weights: {np.mean(gains):+.1f} points.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", type=Path, required=True, help="folder of the real micrographs")
    parser.add_argument("--out", type=Path, default=ROOT / "experiments" / "real_data")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ssl", default="matssl", help="method of the pretraining run")
    parser.add_argument("--ssl_steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--finetune", nargs="*", default=[], help="further flags of fine-tuning")
    args = parser.parse_args()
    campaign = Campaign(
        args.data.resolve(), args.out.resolve(), args.threads, args.ssl_steps, tuple(args.finetune)
    )
    if args.what == "run":
        run(campaign, args.sets, args.starts, args.seeds, args.ssl)
    else:
        table(campaign)


if __name__ == "__main__":
    main()
