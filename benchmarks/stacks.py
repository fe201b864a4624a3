"""Depth: what frames beside each other tell that one frame does not.

python -m benchmarks.stacks [--seeds 3] [--steps 200] [--output FOLDER]

Films of discs of one grey level: half of them rest, half drift by three pixels a frame. Of one
frame nothing but chance tells which is which. Each film is a TIFF stack of eight pages, of which
two have a mask in training, each a file of its own; all pages of the test films have one. The same
network, steps and seeds at --input_depth 1 and 3. Runs that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from matssl.measure import intervals

PAGES, SIDE, DISCS, RADIUS, DRIFT = 8, 96, 10, 5, 3
FILMS = {"train": 6, "val": 2, "test": 4}
LABELLED = (3, 6)
DEPTHS = (1, 3)
NETWORK = (
    "--encoder classic_unet --encoder_filters 8 16 32 32 32 --batchnorm --decoder classic_unet "
    "--decoder_filters 32 32 32 16 8 --lr 0.003 --batch_size 8 --crop_size 64 --val_every 100 "
    "--class_weights balanced"
)
ALIKE = "--threads 1 --device cpu --precision fp32 --quiet"


def film(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return pages and masks, uint8 (PAGES, SIDE, SIDE): 0 matrix, 1 resting, 2 drifting."""
    generator = np.random.default_rng(seed)
    masks = np.zeros((PAGES, SIDE, SIDE), np.uint8)
    places = generator.uniform(0, SIDE, (DISCS, 2))
    angles = generator.uniform(0, 2 * np.pi, DISCS)
    steps = DRIFT * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    steps[: DISCS // 2] = 0
    for page in range(PAGES):
        for number, (place, step) in enumerate(zip(places, steps, strict=True)):
            x, y = np.rint((place + page * step) % SIDE).astype(int).tolist()
            cv2.circle(masks[page], (x, y), RADIUS, 1 if number < DISCS // 2 else 2, -1)
    grey = 90 + 60 * (masks > 0) + generator.normal(0, 12, masks.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), masks


def write(folder: Path, seed: int) -> None:
    """Write the films of a seed, laid out as splits."""
    number = 0
    for split, count in FILMS.items():
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            number += 1
            pages, masks = film(1000 * seed + number)
            name = f"film{number:02}"
            grey = {"photometric": "minisblack"}
            tifffile.imwrite(folder / split / f"images/{name}x.tif", pages, **grey)
            if split == "test":
                tifffile.imwrite(folder / split / f"masks/{name}x.tif", masks, **grey)
                continue
            for page in LABELLED:
                cv2.imwrite(str(folder / split / f"masks/{name}x-{page:03}.png"), masks[page - 1])


def single(folder: Path, films: Path) -> None:
    """Write the same labelled pages as single pictures, which is what depth 1 reads."""
    for split in FILMS:
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for path in sorted((films / split / "images").glob("*.tif")):
            stack = films / split / "masks" / path.name
            masks = tifffile.imread(stack) if stack.exists() else None
            for page, picture in enumerate(tifffile.imread(path), start=1):
                name = f"{path.stem}-{page:03}.png"
                mask = masks[page - 1] if masks is not None else None
                if masks is None and page in LABELLED:
                    mask = cv2.imread(str(films / split / "masks" / name), cv2.IMREAD_UNCHANGED)
                if mask is not None:
                    cv2.imwrite(str(folder / split / "images" / name), picture)
                    cv2.imwrite(str(folder / split / "masks" / name), mask)


def score(root: Path, seed: int, depth: int, steps: int) -> dict[str, float]:
    """Return mean IoU and IoU of each class on the test films, in per cent."""
    films, pictures = root / f"films{seed}", root / f"pictures{seed}"
    if not films.exists():
        write(films, seed)
        single(pictures, films)
    data = films if depth > 1 else pictures
    out = root / f"depth{depth}-seed{seed}"
    (done,) = list(out.glob("eval/*/metrics.json")) or [None]
    if done is None:
        tuned = f"train_finetune.py --finetune_dataset {data} --name m --output_dir {out} --seed "
        tuned += f"{seed} --steps {steps} --input_depth {depth} {NETWORK} {ALIKE} --overwrite"
        told = f"eval_model.py --model_path {out}/finetune/m/best.ckpt --dataset {data} --split "
        told += f"test --output_dir {out} --no-baselines --overwrite {ALIKE}"
        for words in (tuned, told):
            subprocess.run([sys.executable, *words.split()], check=True)
        (done,) = out.glob("eval/*/metrics.json")
    found = json.loads(done.read_text(encoding="utf-8"))["pooled"]
    classes = {k: 100 * v["IoU"] for k, v in found["classes"].items()}
    return {"mIoU": 100 * found["means"]["miou"], **classes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", default="experiments/stacks")
    args = parser.parse_args()
    root = Path(args.output)
    found: dict[int, list[dict[str, float]]] = {depth: [] for depth in DEPTHS}
    for seed in range(args.seeds):
        for depth in DEPTHS:
            found[depth].append(score(root, seed, depth, args.steps))
            print(f"seed {seed} depth {depth}: {found[depth][-1]}", flush=True)
    names = list(found[1][0])
    print("| depth | " + " | ".join(names) + " |\n| --- |" + " --- |" * len(names))
    for depth, scores in found.items():
        cells = [
            f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in ([one[name] for one in scores] for name in names)
        ]
        print(f"| {depth} | " + " | ".join(cells) + " |")
    pairs = zip(found[1], found[3], strict=True)
    gains = [three["mIoU"] - one["mIoU"] for one, three in pairs]
    print("gain in points, by seed: " + ", ".join(f"{gain:.1f}" for gain in gains))
    if len(gains) > 1:
        one, three = ([scores["mIoU"] for scores in found[depth]] for depth in DEPTHS)
        mean, half = intervals.paired(one, three)
        print(f"mean gain {mean:.1f}, 95 % interval ± {half:.1f} (n = {len(gains)} seeds)")


if __name__ == "__main__":
    main()
