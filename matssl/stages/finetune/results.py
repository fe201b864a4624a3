"""Files that unet-compare leaves, under its names, in a run that has ``--results_dir``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from matssl.core import checkpoint
from matssl.core.arrays import Array
from matssl.core.flags import declared
from matssl.core.run_folder import RunFolder, atomic_write_bytes
from matssl.core.tables import csv_text
from matssl.data.crops import Labelled
from matssl.models import trial
from matssl.models.segmentation import SegmentationModel
from matssl.pictures import epochs
from matssl.pictures.training import Columns, read_table
from matssl.stages import drawing, published
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.learner import Averaged, Learner
from matssl.stages.finetune.settings import FinetuneSettings

# Columns of its metrics.csv and of our log.csv.
COLUMNS = {
    "F1Score": "train_f1",
    "loss": "train_loss",
    "precision": "train_precision",
    "recall": "train_recall",
    "val_F1Score": "val_f1",
    "val_loss": "val_loss",
    "val_precision": "val_precision",
    "val_recall": "val_recall",
    "l2": "l2",
}


def begin(
    folder: RunFolder, settings: FinetuneSettings, model: SegmentationModel, inputs: Inputs
) -> None:
    """Write what is known before the first step: the configuration, the parts, the network.

    Args:
        folder: of the run.
        settings: of the run.
        model: that is trained.
        inputs: its images.
    """
    if not settings.results_dir or not folder.writer:
        return
    config = published.unet_compare_config(settings.config, declared(FinetuneSettings))
    if config is not None:
        folder.write_json("configs.json", config)
    parts = {"train": inputs.train, "val": inputs.val}
    names = {
        split: [pair.image.name for pair in data.pairs] if data else []
        for split, data in parts.items()
    }
    names["test"] = [p.image.name for p in inputs.dataset.pairs if p.split == "test"]
    folder.write_json("splits.json", names)
    if config is None or config["model_summary"]:
        assert settings.crop_size is not None
        folder.write_text("model_summary.out", summary(model, settings.crop_size))
        folder.write_text("trainable.out", trainable(model))


def finish(
    folder: RunFolder,
    settings: FinetuneSettings,
    inputs: Inputs,
    learner: Learner,
    probabilities: Callable[[Array], Array],
) -> None:
    """Write what the kept model says of its images, and the course of the epochs.

    Args:
        folder: of the run; its best.ckpt has the weights of the network.
        settings: of the run.
        inputs: its images.
        learner: takes those weights.
        probabilities: plane to (C, H, W), by the kept model, whose network is the learner's.
    """
    if not settings.results_dir or not folder.writer:
        return
    best = checkpoint.load(folder.root / "best.ckpt", stage="finetune")
    _course(folder, int(best["step"]))
    if learner.num_classes != 2:
        return
    with Averaged(learner.model, best["state"]):
        learner.model.eval()
        for place, data in (("train_preds", inputs.train), ("val_preds", inputs.val)):
            for name, chance in _predicted(probabilities, data, inputs.dataset.root):
                png = cv2.imencode(".png", chance)[1].tobytes()
                atomic_write_bytes(folder.path(f"{place}/{name}.png"), png)


def _predicted(
    probabilities: Callable[[Array], Array], data: Labelled | None, root: Path
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield name and probabilities of each image: the model's own, which a threshold acts on."""
    if data is None:
        return
    names = drawing.output_names([pair.image for pair in data.pairs], root)
    for name, plane in zip(names, data.planes, strict=True):
        yield name, drawing.eight_bit(probabilities(plane))


def _course(folder: RunFolder, kept: int) -> None:
    """Write metrics.csv and metrics.png; every validation ends an epoch."""
    log = folder.root / "log.csv"
    table = read_table(log) if log.is_file() else Columns(0)
    if "val_f1" not in table:
        return
    names = {theirs: ours for theirs, ours in COLUMNS.items() if ours in table}
    columns: dict[str, Array] = {"epoch": np.arange(table.rows)}
    columns |= {theirs: table[ours] for theirs, ours in names.items()}
    rows = [
        {name: int(v[i]) if name == "epoch" else float(v[i]) for name, v in columns.items()}
        for i in range(table.rows)
    ]
    folder.write_text("metrics.csv", csv_text(rows))
    step = table["step"]
    best = int(np.argmin(np.abs(step - kept)))
    epochs.plot(columns, best, folder.path("metrics.png"))


def summary(model: SegmentationModel, side: int) -> str:
    """Return the layers of a network: name, kind, map and parameters of each, and their sums.

    Args:
        model: the network.
        side: of the image it is shown for, in pixels.
    """
    shapes: dict[str, str] = {}

    def note(name: str) -> object:
        def hook(_layer: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                shapes[name] = " x ".join(map(str, output.shape[1:]))

        return hook

    layers = [(name, m) for name, m in model.named_modules() if not list(m.children())]
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        trial.attempt(model, (1, model.description["in_channels"], side, side))
    except trial.Misfit:
        # The maps are left out.
        shapes.clear()
    finally:
        for handle in handles:
            handle.remove()
    rows = [("layer", "kind", "map (channels x rows x columns)", "parameters")]
    for name, layer in layers:
        count = sum(parameter.numel() for parameter in layer.parameters())
        rows.append((name, type(layer).__name__, shapes.get(name, ""), f"{count:,}"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)) for r in rows]
    total = sum(parameter.numel() for parameter in model.parameters())
    learn = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sums = f"parameters {total:,}, of which {learn:,} learn and {total - learn:,} are frozen"
    return "\n".join([*(line.rstrip() for line in lines), "", sums, ""])


def trainable(model: nn.Module) -> str:
    """Return each layer that has parameters with True where it learns, a line each."""
    lines = []
    for name, layer in model.named_modules():
        own = list(layer.parameters(recurse=False))
        if own:
            lines.append(f"{name} {any(parameter.requires_grad for parameter in own)}")
    return "\n".join([*lines, ""])
