"""Does the look at a start cry wolf? python -m benchmarks.start_rule ENCODER --root DATA

On each set, with one labelled image and with all, starts are held against three draws of random
weights as train_finetune.py does before it trains: further draws, of which none is worse than
random; the given encoder; the same collapsed (all filters of a layer nearly alike), which is.
Training images alone are read. A row a set; seconds an encoder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matssl import preflight
from matssl.core.errors import guard
from matssl.core.parsing import read_settings
from matssl.models.encoders import build_encoder, encoder_facts
from matssl.probe import CrossProbe
from matssl.stages import lineage
from matssl.stages.finetune import inputs as reading
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import resolve

SETS = Path(__file__).parent / "comparison.yaml"
# Draws that are held against, and others that are held.
REFERENCE, FURTHER = range(3), range(3, 7)


def main(argv: Sequence[str]) -> int:
    """Print the table; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.start_rule")
    parser.add_argument("encoder", help="weights of a sound pretraining")
    parser.add_argument("--root", required=True, help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="+", default=["uhcs", "EBC3", "EBC1", "Super3"])
    parser.add_argument("--draws", type=int, default=3, help="of the one labelled image")
    parser.add_argument("--name", default="resnet18", help="encoder of the weights")
    args = parser.parse_args(argv)
    known = read_settings(SETS)["datasets"]
    print("set | parts | random, mean | alarms of further draws | given | collapsed")
    for name in args.sets:
        for seed in (*range(args.draws), None):
            inputs = _inputs(known[name], Path(args.root), seed)
            label = f"{name}, all {len(inputs.train.planes)}" if seed is None else f"{name}, 1"
            print(f"{label} | {_row(inputs, args.encoder, args.name, seed or 0)}", flush=True)
    return 0


def _inputs(labels: dict[str, str], root: Path, seed: int | None) -> Inputs:
    """Return the images of a set, one of them drawn by a seed, or all."""
    words = ["--finetune_dataset", str(root / labels["finetune_dataset"])]
    words += ["--splits", str(root / labels["splits"]), "--seed", str(seed or 0)]
    words += [] if seed is None else ["--max_train_images", "1"]
    settings = resolve(words)
    dataset, labelled, _ = reading.find(settings)
    record = settings.record(settings.in_channels, None)
    record = preflight.examine_dataset(dataset, record, opened=reading.OPENED).record
    train, val = reading.parted(settings, labelled)
    return reading.load(dataset, train, val, record)


def _row(inputs: Inputs, source: str, name: str, seed: int) -> str:
    """Return the cells of a set."""
    multiple = encoder_facts(build_encoder(name, 1)).multiple
    probe = CrossProbe(inputs.train, inputs.table.num_classes, inputs.record.tensor, seed, multiple)

    def counts(encoder: nn.Module) -> NDArray[np.int64]:
        return probe.counts(encoder.eval(), torch.device("cpu"), contextlib.nullcontext)

    def loaded() -> nn.Module:
        encoder = build_encoder(name, 1)
        lineage.start_weights(encoder, source, name, inputs.record)
        return encoder

    random = []
    for draw in (*REFERENCE, *FURTHER):
        torch.manual_seed(seed + draw)
        random.append(counts(build_encoder(name, 1)))
    reference = random[: len(REFERENCE)]

    def told(found: NDArray[np.int64]) -> tuple[str, bool]:
        gains = [probe.gain(one, found) for one in reference]
        low, high = min(gain.low for gain in gains), max(gain.high for gain in gains)
        said = "worse" if high < 0 else "better" if low > 0 else "-"
        score = 100 * probe.score(found)
        return f"{score:.1f} [{100 * low:+.1f}, {100 * high:+.1f}] {said}", high < 0

    alarms = sum(told(one)[1] for one in random[len(REFERENCE) :])
    mean = sum(100 * probe.score(one) for one in reference) / len(reference)
    cells = [f"{len(reference[0])} {probe.unit}", f"{mean:.1f}", f"{alarms} of {len(FURTHER)}"]
    cells += [told(counts(loaded()))[0], told(counts(_collapsed(loaded())))[0]]
    return " | ".join(cells)


def _collapsed(encoder: nn.Module) -> nn.Module:
    """Return an encoder whose filters are nearly alike in each layer."""
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            kernel = layer.weight.data
            layer.weight.data = kernel.mean(0, keepdim=True) + 0.01 * kernel
    return encoder


if __name__ == "__main__":
    sys.exit(guard(main))
