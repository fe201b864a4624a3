"""A frozen ViT-S/14 at 518 px with a decoder: seconds a step and peak memory of the command itself.

``python -m benchmarks.bench_transformer FOLDER [--threads 2] [--steps 6]`` trains each line of RUNS
for a few steps with train_finetune.py on a labelled folder (nasa's EBC2: 1024 px, validation and
report included) from a file in the layout of dinov2_vits14_pretrain.pth with made-up values, and
prints a table. Steps are timed by the growth of steps.csv, the first is left out; memory is the
largest resident size that the kernel saw of the process.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from matssl.models.vit import VitEncoder

ENCODER = "dinov2-vit-s14"
SMALL_DPT = ("384", "192", "96", "48", "64")
RUNS = (
    ("unet", "none", 1, ()),
    ("unet", "none", 4, ()),
    ("dpt", "none", 1, ()),
    ("dpt", "none", 4, SMALL_DPT),
    ("unet", "all", 1, ()),
)


def published(path: Path) -> None:
    """Write made-up values in the layout of DINOv2's own ViT-S/14."""
    torch.manual_seed(0)
    state = VitEncoder(ENCODER, 3).state_dict()
    tensors = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    torch.save({**tensors, "mask_token": torch.zeros(1, 384)}, path)


def measured(command: list[str], steps: Path) -> tuple[float, float]:
    """Run a command; return seconds a step and its peak memory in GB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    seen: list[float] = []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        lines = len(steps.read_text().splitlines()) - 1 if steps.exists() else 0
        if lines > len(seen):
            seen += [time.perf_counter()] * (lines - len(seen))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if peak == before:
        print("(a run before it took as much memory: the figure is an upper bound)")
    return median(b - a for a, b in zip(seen, seen[1:], strict=False)), peak / 1e6 * 1.024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--steps", default="6")
    parser.add_argument("--run", type=int, help="number of the only line that is run, from 0")
    args = parser.parse_args()
    if args.run is None:
        # Each in a process of its own: the kernel keeps one peak of all children.
        for number in range(len(RUNS)):
            words = [sys.executable, "-m", "benchmarks.bench_transformer", str(args.folder)]
            words += ["--threads", args.threads, "--steps", args.steps, "--run", str(number)]
            subprocess.run(words, check=True)
        return
    decoder, blocks, batch, filters = RUNS[args.run]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "dinov2_vits14_pretrain.pth"
        published(weights)
        command = [sys.executable, "train_finetune.py", "--finetune_dataset", str(args.folder)]
        command += ["--ssl_weights_path", str(weights), "--decoder", decoder]
        command += ["--finetune_blocks", blocks, "--crop_size", "518", "--batch_size", str(batch)]
        command += ["--steps", args.steps, "--threads", args.threads, "--device", "cpu", "--quiet"]
        command += ["--output_dir", folder, "--name", "x"]
        command += ["--decoder_filters", *filters] if filters else []
        run = Path(folder) / "finetune" / "x"
        seconds, peak = measured(command, run / "steps.csv")
    own = f" --decoder_filters {' '.join(filters)}" if filters else ""
    print(
        f"| {decoder}{own} | {'frozen' if blocks == 'none' else 'all blocks'} | {batch} "
        f"| {seconds:.1f} | {peak:.2f} |"
    )


if __name__ == "__main__":
    main()
