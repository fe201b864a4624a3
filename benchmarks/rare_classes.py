"""What limits the rarest class, and whether factors of the classes pay on specimens held out.

    python train_finetune.py --finetune_dataset FOLDER --folds 3 --name x
    python -m benchmarks.rare_classes experiments/finetune/x FOLDER

Each image is predicted by the model of the fold that has not seen it; the factors are those that
the validation images inside each fold choose. Nothing is trained and no test image is opened.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from matssl import Segmenter
from matssl.data import crops, layouts
from matssl.data.layouts import Pair
from matssl.metrics import calibration, counts, decision, overlap

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
TOLERANCES = (0, 1, 2, 3)
Found = tuple[Pair, NDArray[np.float32], NDArray[np.uint8]]


def main() -> None:
    """Print the tables of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits")
    parser.add_argument("--mask_folder")
    given = parser.parse_args()
    plan = json.loads((given.run / "cross_validation.json").read_text())
    dataset = layouts.find(given.folder, splits=given.splits, mask_folder=given.mask_folder)
    where = {os.path.relpath(pair.image, dataset.root): pair for pair in dataset.pairs}
    names = dataset.table.names if dataset.table else ()
    size = len(names)
    ways = ("most likely", "factors chosen", "factors that pay")
    totals = {way: np.zeros((size, size), np.int64) for way in ways}
    held: list[Found] = []
    for number, fold in enumerate(plan["folds"], start=1):
        model = Segmenter.load(given.run / f"fold_{number}", device="cpu")
        inside = predicted(model, [where[name] for name in fold["val"]])
        outside = predicted(model, [where[name] for name in fold["held_out"]])
        held += outside
        choice = None
        if inside:
            every = calibration.thinned([mask for *_, mask in inside])
            samples = [calibration.sample(chance, mask, every) for _, chance, mask in inside]
            choice = decision.chosen(samples, [pair.group for pair, *_ in inside])
            print(f"fold {number}: {choice.to_dict()}", flush=True)
        for _, chance, mask in outside:
            for way, total in totals.items():
                factors = None if choice is None or way == ways[0] else np.exp(choice.offsets)
                if factors is not None and way == ways[2] and choice and not choice.pays:
                    factors = None
                weighed = chance if factors is None else chance * factors[:, None, None]
                total += counts.confusion(mask, weighed.argmax(axis=0).astype(np.uint8), size)
    for way, total in totals.items():
        classes = dict(zip(names, np.round(100 * overlap.iou(total), 1).tolist(), strict=True))
        print(f"{way:17s} mIoU {100 * overlap.miou(total):.1f} {classes}")
    rarest(held, names, totals[ways[0]])


def predicted(model: Segmenter, pairs: list[Pair]) -> list[Found]:
    """Return images with the probabilities of a model, as the network gives them."""
    found = []
    for pair in pairs:
        data = crops.load([pair], model.record, model.table)
        tensor = model.record.tensor(data.planes[0])
        chance = model.network.probabilities(tensor, model.table.num_classes)
        found.append((pair, chance, data.masks[0]))
    return found


def rarest(held: list[Found], names: tuple[str, ...], total: NDArray[np.int64]) -> None:
    """Print the rarest class by threshold, by tolerance and by connected parts."""
    shares = total.sum(axis=1) / total.sum()
    index = int(np.argmin(np.where(shares > 0, shares, np.inf)))
    print(f"rarest: {names[index]}, {100 * shares[index]:.2f} % of the pixels")
    parts = found = 0
    by_threshold = np.zeros((len(THRESHOLDS), 3))
    by_tolerance = np.zeros((len(TOLERANCES), 4))
    square = ndimage.generate_binary_structure(2, 2)
    for _, chance, mask in held:
        true, known = mask == index, mask != 255
        for row, limit in zip(by_threshold, THRESHOLDS, strict=True):
            said = (chance[index] > limit) & known
            row += (said & true).sum(), (said & ~true).sum(), (~said & true).sum()
        said = (chance.argmax(axis=0) == index) & known
        for row, reach in zip(by_tolerance, TOLERANCES, strict=True):
            grown = [
                ndimage.binary_dilation(a, square, reach) if reach else a for a in (said, true)
            ]
            row += (true & grown[0]).sum(), true.sum(), (said & grown[1]).sum(), said.sum()
        labels, _ = ndimage.label(true, square)
        sizes, hits = np.bincount(labels.ravel()), np.bincount(labels[said], minlength=1)
        hits = np.pad(hits, (0, len(sizes) - len(hits)))
        large = sizes[1:] >= 20
        parts += int(large.sum())
        found += int((large & (hits[1:] > 0.3 * sizes[1:])).sum())
    for limit, (tp, fp, fn) in zip(THRESHOLDS, by_threshold, strict=True):
        print(
            f"  p > {limit}: IoU {100 * tp / (tp + fp + fn):.1f}, precision "
            f"{100 * tp / max(tp + fp, 1):.1f}, recall {100 * tp / max(tp + fn, 1):.1f}"
        )
    for reach, (hit, truth, right, said_all) in zip(TOLERANCES, by_tolerance, strict=True):
        print(
            f"  within {reach} px: precision {100 * right / max(said_all, 1):.1f}, recall "
            f"{100 * hit / max(truth, 1):.1f}"
        )
    print(f"  connected parts of 20 px or more: {parts}, found by 30 % of their pixels: {found}")


if __name__ == "__main__":
    main()
