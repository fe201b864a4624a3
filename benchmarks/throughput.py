"""Views a second, data wait and memory of the whole pretraining script, beside a plain pipeline.

    python -m benchmarks.throughput                        # two CPU cores: a few minutes
    python -m benchmarks.throughput --device cuda --encoder resnet50 --batch_size 256

The peer is what the published codes do: PIL decoding and torchvision transforms in a DataLoader
with workers, a torchvision ResNet in three channels, SimCLR's head and loss, SGD. Both run in
processes of their own, in alternation, on the same images.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from matssl.core import runtime

WARM = 5


def ours(args: argparse.Namespace) -> dict[str, float]:
    import train_ssl

    with TemporaryDirectory() as out:
        words = ["--model", args.model, "--data_path", args.data, "--output_dir", out]
        words += ["--name", "x", "--steps", str(args.steps), "--encoder", args.encoder]
        words += ["--batch_size", str(args.batch_size), "--view_size", str(args.view_size)]
        words += ["--device", args.device, "--quiet", "--checkpoint_every", "1000000"]
        words += ["--compile"] if args.compile else []
        train_ssl.main(words)
        with open(Path(out) / "ssl" / "x" / "steps.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    # The columns are means since the start: the seconds of all steps so far follow from them.
    views = 2 * args.batch_size
    clock = [(i + 1) * views / float(r["views_per_s"]) for i, r in enumerate(rows)]
    waited = [t * float(r["wait_share"]) for t, r in zip(clock, rows, strict=True)]
    busy = clock[-1] - clock[WARM - 1]
    return {
        "views": (len(rows) - WARM) * views / busy,
        "wait": (waited[-1] - waited[WARM - 1]) / busy,
    }


class TwoViews(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, folder: Path, size: int, length: int) -> None:
        from torchvision import transforms as T

        self.files = sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".tif", ".jpg"))
        self.length = length
        self.transform = T.Compose(
            [
                T.RandomResizedCrop(size, (0.3, 1.0), antialias=True),
                T.RandomHorizontalFlip(),
                T.RandomVerticalFlip(),
                T.RandomApply([T.ColorJitter(0.3, 0.3)], 0.8),
                T.RandomApply([T.GaussianBlur(5, (0.1, 1.0))], 0.5),
                T.ToTensor(),
                T.Normalize([0.5] * 3, [0.25] * 3),
            ]
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        from PIL import Image

        image = Image.open(self.files[index % len(self.files)]).convert("RGB")
        return self.transform(image), self.transform(image)


def peer(args: argparse.Namespace) -> dict[str, float]:
    from matssl.core import torchvision_ops

    torchvision_ops.ensure()
    from torchvision import models

    device = torch.device(args.device)
    encoder = getattr(models, args.encoder)(weights=None)
    width = encoder.fc.in_features
    encoder.fc = torch.nn.Sequential(
        torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 128)
    )
    encoder.to(device).train()
    optimizer = torch.optim.SGD(encoder.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    data = TwoViews(Path(args.data), args.view_size, args.steps * args.batch_size)
    loader = torch.utils.data.DataLoader(
        data, args.batch_size, num_workers=args.workers, pin_memory=device.type == "cuda"
    )
    half = runtime.has_fast_bf16(device)
    wait = busy = 0.0
    mark = time.perf_counter()
    for step, (first, second) in enumerate(loader):
        now = time.perf_counter()
        wait += (now - mark) * (step >= WARM)
        mark = now
        x = torch.cat([first, second]).to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            z = torch.nn.functional.normalize(encoder(x).float(), dim=1)
        similarity = z @ z.T / 0.1
        similarity.fill_diagonal_(float("-inf"))
        count = len(first)
        target = torch.arange(2 * count, device=device).roll(count)
        loss = torch.nn.functional.cross_entropy(similarity, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        float(loss)
        now = time.perf_counter()
        busy += (now - mark) * (step >= WARM)
        mark = now
    views = 2 * args.batch_size * (args.steps - WARM)
    return {"views": views / (wait + busy), "wait": wait / (wait + busy)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of images (default: 64 synthetic ones of 768 px)")
    parser.add_argument("--model", default="simclr")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--view_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of the peer's DataLoader")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        found = {"ours": ours, "peer": peer}[args.only](args)
        found["rss"] = runtime.peak_memory() / 1e9
        if args.device != "cpu":
            found["gpu"] = torch.cuda.max_memory_allocated() / 1e9
        print(json.dumps(found))
        return
    with TemporaryDirectory() as folder:
        if args.data is None:
            from matssl.data import synthetic

            synthetic.write_pool(Path(folder), 64, size=768, seed=0)
            args.data = folder
        rounds: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for _ in range(args.rounds):
            for only, results in rounds.items():
                words = [sys.executable, "-m", "benchmarks.throughput", "--only", only]
                for name, value in vars(args).items():
                    if value is True:
                        words.append(f"--{name}")
                    elif value not in (False, None) and name != "only":
                        words += [f"--{name}", str(value)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    what = f"{args.model} {args.encoder}, {args.batch_size} pairs of {args.view_size} px"
    print(f"{what}, {args.device}, {args.rounds} rounds of {args.steps} steps, medians")
    print("| pipeline | views/s | data wait % | memory GB | GPU memory GB |")
    print("| --- | --- | --- | --- | --- |")
    median = {
        only: {key: statistics.median(r[key] for r in results) for key in results[0]}
        for only, results in rounds.items()
    }
    for only, label in (("ours", "train_ssl.py"), ("peer", f"torchvision, {args.workers} workers")):
        r = median[only]
        gpu = f"{r['gpu']:.1f}" if "gpu" in r else "-"
        print(f"| {label} | {r['views']:.0f} | {100 * r['wait']:.1f} | {r['rss']:.1f} | {gpu} |")
    both = zip(rounds["ours"], rounds["peer"], strict=True)
    print(f"\nratio {statistics.median(a['views'] / b['views'] for a, b in both):.2f}")


if __name__ == "__main__":
    main()
