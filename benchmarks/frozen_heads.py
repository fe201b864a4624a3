"""Heads on frozen features with one labelled picture: what they see, how coarse maps may be.

    python -m benchmarks.frozen_heads --data DATA --weights FILE --encoder NAME --out OUT run
    python -m benchmarks.frozen_heads --out OUT table

Each head learns from the labelled pixels of one training picture, as ``train_finetune.py --head``
does, and is asked for 8000 pixels of each validation picture; no test picture is opened. Maps are
taken up to a stride of 8, 16 and 32. A set and seed whose result exists is skipped.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from matssl.core import rng
from matssl.forest import growing, logistic
from matssl.metrics import counts, overlap
from matssl.models import pixels as models
from matssl.stages.finetune import heads, start
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.settings import resolve

SETS = {
    "uhcs": "uhcs --splits {data}/PROTOCOL.json",
    "EBC3": "nasa/EBC3",
    "Super3": "nasa/Super3",
    "bubbles": "tem/bubble_512 --splits {data}/PROTOCOL.json",
}
# Pixels that are learned from, and those of a picture that are asked for.
SAMPLES, ASKED = 8000, 8000
# What is seen: whether filters, and up to which stride maps.
SEEN = {
    "filters": (True, 0),
    "encoder, 16": (False, 16),
    "both, 8": (True, 8),
    "both, 16": (True, 16),
    "both, 32": (True, 32),
}


def scored(data: Path, weights: str, encoder: str, name: str, seed: int) -> dict[str, Any]:
    """Return the validation mIoU and the CPU seconds of each head on one set."""
    words = f"--finetune_dataset {data}/{SETS[name].format(data=data)} --max_train_images 1"
    words += f" --head linear --features both --ssl_weights_path {weights} --encoder {encoder}"
    words += f" --seed {seed} --quiet --threads 1 --name none --device cpu"
    models.COARSEST = 32
    settings, rt, root = start.begun(resolve(words.split()))
    settings, dataset, known, found = start.examined(settings, rt, root)[:4]
    inputs = reading.load(dataset, *reading.parted(settings, known), found.record)
    features, _ = heads.features(settings, rt, inputs)
    count = inputs.table.num_classes
    assert inputs.val is not None
    began = time.process_time()

    def of(image: Any, places: Any) -> Any:
        return features.at(image, places, rt.device, rt.autocast)

    own = growing.drawn(
        inputs.train.planes, inputs.train.masks, count, of, SAMPLES, seed, inputs.record.tensor
    )
    result: dict[str, Any] = {"features_s": time.process_time() - began, "heads": {}}
    rows, truth = [], []
    for number, (plane, mask) in enumerate(zip(inputs.val.planes, inputs.val.masks, strict=True)):
        places = np.flatnonzero(mask.ravel() != 255)
        drawn = rng.generator(0, number, 0, stream=rng.SUBSETS).permutation(places)[:ASKED]
        rows.append(of(inputs.record.tensor(plane), np.sort(drawn)))
        truth.append(mask.ravel()[np.sort(drawn)])
    asked, target = np.concatenate(rows), np.concatenate(truth)
    stride = np.repeat([s for _, s in features.seen], [c for c, _ in features.seen])
    said: dict[str, Any] = {}
    for seen, (filters, coarsest) in SEEN.items():
        taken = np.concatenate([np.full(features.filters, filters), stride <= coarsest])
        part = growing.Pixels(
            own.features[:, taken], own.target, own.picture, own.column, own.labelled
        )
        for kind in ("linear", "forest"):
            began = time.process_time()
            if kind == "linear":
                groups = [pair.group for pair in inputs.train.pairs]
                one: Any = logistic.fit(part, count, (), 1, groups, seed).linear
            else:
                one = growing.planted(part, count, (), 1, seed=seed).forest
            seconds = time.process_time() - began
            said[f"{kind}: {seen}"] = one.of_pixels(np.ascontiguousarray(asked[:, taken].T))
            miou = _miou(said[f"{kind}: {seen}"], target, count)
            result["heads"][f"{kind}: {seen}"] = {"miou": miou, "seconds": seconds}
    for other in ("forest: filters", "forest: both, 16"):
        mean = (said["linear: both, 16"] + said[other]) / 2
        result["heads"][f"mean of linear: both, 16 and {other}"] = {
            "miou": _miou(mean, target, count),
            "seconds": float("nan"),
        }
    return result


def _miou(probabilities: Any, target: Any, count: int) -> float:
    classes = probabilities.argmax(axis=0).astype(np.uint8)
    return float(overlap.miou(counts.confusion(target, classes, count)))


def table(out: Path) -> str:
    """Return the means over the seeds as a markdown table."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    names = [name for name in SETS if any(key.startswith(f"{name}-") for key in found)]
    kinds = list(next(iter(found.values()))["heads"])
    lines = [
        "| head: what it sees (largest stride) | " + " | ".join(names) + " | mean | CPU s |",
        "|" + " --- |" * (len(names) + 3),
    ]
    for kind in kinds:
        cells, seconds = [], []
        for name in names:
            own = [f["heads"][kind] for key, f in found.items() if key.startswith(f"{name}-")]
            cells.append(100 * float(np.mean([one["miou"] for one in own])))
            seconds += [one["seconds"] for one in own]
        mean = f"{np.mean(cells):.1f} | {np.mean(seconds):.0f}".replace("nan", "-")
        lines.append(f"| {kind} | " + " | ".join(f"{c:.1f}" for c in cells) + f" | {mean} |")
    seeds = {key.rsplit("-", 1)[1] for key in found}
    return "\n".join([*lines, f"n = {len(found)} (sets x seeds {', '.join(sorted(seeds))})"])


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights")
    parser.add_argument("--encoder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("what", choices=("run", "table"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "run":
        for seed in args.seeds:
            for name in SETS:
                path = args.out / f"{name}-{seed}.json"
                if not path.exists():
                    result = scored(args.data, args.weights, args.encoder, name, seed)
                    path.write_text(json.dumps(result, indent=1))
                    print(name, seed, flush=True)
    print(table(args.out))


if __name__ == "__main__":
    main()
