"""Does it pay to fit BatchNorm to the pictures that are predicted? Specimens that a model lacks.

    python train_finetune.py --finetune_dataset DATA/uhcs --splits DATA/PROTOCOL.json --folds 3 \\
        --name uhcs
    python -m benchmarks.adaptation experiments/finetune/uhcs --out adaptation.csv

The means and variances of all BatchNorm layers are measured on tiles of a held-out specimen,
without its masks, and mixed with those of the training, which weigh as ``prior`` tiles (Schneider
et al. 2020, arXiv:2006.16971): ``m = (N m_training + n m_pictures) / (N + n)``. All tiles pass at
once, so that a layer measures what the adapted layers before it make of them; at most 16 of 256
pixels, spread over the pictures. Each specimen alone is scored as trained and adapted, by the
model of its fold; "guard" says whether a rule without labels would have taken the adapted model:
it is surer (lower entropy on the tiles), and no class of 0.2 % or more falls below half of its
share. No test image is opened. With ``--tent LR STEPS`` the scale and offset of these layers then
minimise the entropy (Tent, Wang et al. 2021, arXiv:2006.10726), four tiles a step. Resumable: rows
that the table has are skipped.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import campaign
from matssl import tiling
from matssl.core.parsing import read_settings
from matssl.data import crops, layouts
from matssl.data.crops import Labelled
from matssl.metrics import overlap
from matssl.metrics.counts import confusion
from matssl.tiles import starts
from matssl.trained.segmenter import Segmenter

SIDE, MOST_TILES = 256, 16
SMALL_SHARE, LEAST_LEFT = 0.002, 0.5
Statistics = dict[str, tuple[Tensor, Tensor]]


def layers(model: nn.Module) -> dict[str, nn.Module]:
    kind = nn.modules.batchnorm._BatchNorm
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}


def statistics(model: nn.Module) -> Statistics:
    return {n: (m.running_mean.clone(), m.running_var.clone()) for n, m in layers(model).items()}


def put(model: nn.Module, values: Statistics) -> None:
    for name, layer in layers(model).items():
        layer.running_mean.copy_(values[name][0])
        layer.running_var.copy_(values[name][1])


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put weights and statistics back as they were."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        yield
    finally:
        model.load_state_dict(own)


def tiles(images: list[np.ndarray]) -> Tensor:
    """Return tiles (n, C, S, S) of normalised images (C, H, W), as many of each."""
    found = []
    for image in images[:MOST_TILES]:
        _, height, width = image.shape
        places = [(y, x) for y in starts(height, SIDE, 0) for x in starts(width, SIDE, 0)]
        most = min(max(1, MOST_TILES // len(images)), len(places))
        for number in np.linspace(0, len(places) - 1, most).round().astype(int):
            top, left = places[number]
            tile = image[:, top : top + SIDE, left : left + SIDE]
            missing = [(0, 0), (0, SIDE - tile.shape[1]), (0, SIDE - tile.shape[2])]
            found.append(np.pad(tile, missing, mode="symmetric"))
    return torch.from_numpy(np.stack(found))


@torch.no_grad()
def passed(model: nn.Module, x: Tensor, share: float) -> tuple[Tensor, Statistics]:
    """Return probabilities of tiles and what each layer measured; the layers keep the mixture.

    Args:
        model: in evaluation.
        x: (n, C, S, S).
        share: of the training's statistics, 0 to 1.
    """
    own, seen = statistics(model), {}

    def measure(name: str, layer: nn.Module, given: Tensor) -> None:
        variance, mean = torch.var_mean(given.float(), dim=(0, 2, 3), correction=0)
        seen[name] = mean, variance
        layer.running_mean.copy_(share * own[name][0] + (1 - share) * mean)
        layer.running_var.copy_(share * own[name][1] + (1 - share) * variance)

    handles = [
        layer.register_forward_pre_hook(lambda m, given, name=name: measure(name, m, given[0]))
        for name, layer in layers(model).items()
    ]
    probabilities = model(x.contiguous(memory_format=torch.channels_last)).float().softmax(dim=1)
    for handle in handles:
        handle.remove()
    return probabilities, seen


def distance(model: nn.Module, seen: Statistics) -> float:
    """Return the median over channels of |m' - m| / s + |ln(s' / s)|, the mean over layers."""
    found = []
    for name, layer in layers(model).items():
        spread = (layer.running_var + layer.eps).sqrt()
        other = (seen[name][1] + layer.eps).sqrt()
        apart = (seen[name][0] - layer.running_mean).abs() / spread + (other / spread).log().abs()
        found.append(float(apart.median()))
    return float(np.mean(found))


def entropy(probabilities: Tensor) -> float:
    return float(-torch.special.xlogy(probabilities, probabilities).sum(dim=1).mean())


def shares(probabilities: Tensor) -> np.ndarray:
    counts = probabilities.argmax(1).flatten().bincount(minlength=probabilities.shape[1])
    return (counts / counts.sum()).cpu().numpy()


def guard(before: Tensor, after: Tensor) -> bool:
    """Return whether a rule without labels takes the adapted model."""
    had, has = shares(before), shares(after)
    gone = (had >= SMALL_SHARE) & (has < LEAST_LEFT * had)
    return entropy(after) < entropy(before) and not gone.any()


def tent(model: nn.Module, x: Tensor, rate: float, steps: int) -> None:
    """Let scale and offset of the BatchNorm layers minimise the entropy of tiles."""
    learn = [p for m in layers(model).values() for p in (m.weight, m.bias) if p is not None]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in learn:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learn, rate)
    for step in range(steps):
        part = x[[number % len(x) for number in range(4 * step, 4 * step + 4)]]
        p = model(part).float().softmax(dim=1)
        optimizer.zero_grad()
        (-torch.special.xlogy(p, p.clamp_min(1e-8)).sum(dim=1).mean()).backward()
        optimizer.step()


def counted(segmenter: Segmenter, images: list[np.ndarray], data: Labelled) -> np.ndarray:
    classes = segmenter.table.num_classes
    total = np.zeros((classes, classes), np.int64)
    for image, mask in zip(images, data.masks, strict=True):
        said = tiling.predict(segmenter.network.model, image, device=segmenter.network.device)
        total += confusion(mask, said.argmax(0).astype(np.uint8), classes)
    return total


def fold(run: Path, number: int, held: set[str], args: argparse.Namespace) -> None:
    """Score the specimens of a fold and add their rows to the table."""
    settings = read_settings(run / "config.yaml")
    model = run / f"fold_{number}" / "best.ckpt"
    segmenter = Segmenter.load(model, device=args.device, precision="fp32", threads=args.threads)
    folder = layouts.find(
        settings["finetune_dataset"],
        splits=args.splits or settings.get("splits"),
        group_regex=settings.get("group_regex"),
        table=segmenter.table,
    )
    net, device = segmenter.network.model, segmenter.network.device
    pairs = [p for p in folder.pairs if str(p.image.relative_to(folder.root)) in held]
    pairs = [p for p in pairs if not p.split.endswith("test") and p.group not in args.skip]
    done = {(row["run"], row["specimen"], row["how"]) for row in campaign.rows(args.out)}
    for specimen in sorted({pair.group for pair in pairs}):
        ways = [(f"prior {prior:g}", prior, False) for prior in args.priors]
        ways += [(f"tent {args.tent[0]:g} x {args.tent[1]:g}", 32.0, True)] if args.tent else []
        ways = [way for way in ways if (run.name, specimen, way[0]) not in done]
        if not ways:
            continue
        own = [pair for pair in pairs if pair.group == specimen]
        data = crops.load(own, segmenter.record, segmenter.table)
        images = [segmenter.record.tensor(plane) for plane in data.planes]
        x = tiles(images).to(device)
        plain, seen = passed(net, x, 1.0)
        apart, before = distance(net, seen), overlap.miou(counted(segmenter, images, data))
        for name, prior, learns in ways:
            with kept(net):
                passed(net, x, prior / (prior + len(x)))
                if learns:
                    tent(net, x, args.tent[0], int(args.tent[1]))
                with torch.no_grad():
                    after = torch.cat([net(part).float().softmax(1) for part in x.split(4)])
                miou = overlap.miou(counted(segmenter, images, data))
            row: dict[str, object] = {"run": run.name, "fold": number, "specimen": specimen}
            row |= {"images": len(own), "tiles": len(x), "how": name}
            row |= {"miou": round(before, 4), "adapted": round(miou, 4)}
            row |= {"distance": round(apart, 3), "entropy": round(entropy(plain), 4)}
            row |= {"entropy_after": round(entropy(after), 4), "guard": guard(plain, after)}
            campaign.append(args.out, row)


def summary(path: Path) -> None:
    """Print the mean change of the mIoU over specimens, adapted always and by the guard."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    print("| run | how | specimens | as trained | adapted | worst | best | by the guard | taken |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for run, how in dict.fromkeys((row["run"], row["how"]) for row in rows):
        own = [row for row in rows if (row["run"], row["how"]) == (run, how)]
        gains = np.array([100 * (float(r["adapted"]) - float(r["miou"])) for r in own])
        taken = np.array([row["guard"] == "True" for row in own])
        plain = np.mean([100 * float(row["miou"]) for row in own])
        print(
            f"| {run} | {how} | {len(own)} | {plain:.1f} | {gains.mean():+.1f} | {gains.min():+.1f}"
            f" | {gains.max():+.1f} | {(gains * taken).mean():+.1f} | {taken.sum()} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, help="of train_finetune.py --folds")
    parser.add_argument("--out", type=Path, required=True, help="table that grows")
    parser.add_argument("--splits", type=Path, help="whose test images stay closed")
    parser.add_argument("--skip", nargs="+", default=[], help="specimens that are not looked at")
    parser.add_argument("--priors", nargs="+", type=float, default=[0, 16, 64])
    parser.add_argument("--tent", nargs=2, type=float, metavar=("LR", "STEPS"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    for run in args.runs:
        plan = json.loads((run / "cross_validation.json").read_text())
        for number, part in enumerate(plan["folds"], 1):
            fold(run, number, set(part["held_out"]), args)
    summary(args.out)


if __name__ == "__main__":
    main()
