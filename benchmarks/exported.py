"""Exported models: the table of parity with torch, and what 8 bits cost and save.

    python -m benchmarks.exported parity OUT.csv
    python -m benchmarks.exported int8 CHECKPOINT FOLDER

The first has a row for each encoder, decoder and target; rows that OUT.csv holds are not made
again. Networks have random weights. The second times tiles by process CPU time, in turns.
"""

from __future__ import annotations

import csv
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.paired import ratio, seconds
from matssl.core import checkpoint, machine
from matssl.core.errors import UserError
from matssl.data.masks import ClassTable, MaskClass
from matssl.data.preprocess import Preprocess
from matssl.models.segmentation import build_model
from matssl.stages.export.exporting import export
from matssl.stages.export.settings import ExportSettings
from matssl.trained import engines
from matssl.trained.exported import Recipe
from matssl.trained.segmenter import Segmenter

ENCODERS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet-b0")
ENCODERS += ("tu-regnety_002", "tu-mobilenetv3_small_100")
DECODERS = ("unet", "unetplusplus", "deeplabv3plus")
TARGETS = ("onnx", "openvino", "torchscript")
COLUMNS = ("encoder", "decoder", "target", "difference", "labels", "pixels", "MB", "seconds")
SIDE, ROUNDS = 512, 9


def model_file(encoder: str, decoder: str, folder: Path) -> Path:
    """A checkpoint of three classes; its BatchNorms have seen noise, as those of training have."""
    torch.manual_seed(0)
    model = build_model(encoder, decoder, 3)
    with torch.no_grad():
        model.train()(torch.randn(4, 1, 128, 128))
    table = ClassTable("index", tuple(MaskClass(i, f"class {i}", (i,)) for i in range(3)))
    payload = {"stage": "finetune", "model": model.description, "state": model.state_dict()}
    payload |= {"preprocess": Preprocess().to_dict(), "classes": table.to_dict()}
    checkpoint.save(folder / "best.ckpt", {**payload, "step": 1, "lineage": []})
    return folder / "best.ckpt"


def parity(path: Path) -> None:
    done = set()
    if path.exists():
        with open(path, newline="") as file:
            done = {tuple(r[name] for name in COLUMNS[:3]) for r in csv.DictReader(file)}
    else:
        path.write_text(",".join(COLUMNS) + "\n")
    for encoder in ENCODERS:
        for decoder in DECODERS:
            open_ = [t for t in TARGETS if (encoder, decoder, t) not in done]
            with tempfile.TemporaryDirectory() as scratch:
                source = model_file(encoder, decoder, Path(scratch)) if open_ else None
                for target in open_:
                    start, out = time.process_time(), str(Path(scratch) / target)
                    try:
                        recipe = Recipe.read(
                            export(ExportSettings(run=str(source), to=target, output_dir=out))
                        )
                        found = recipe.parity
                        size = Path(out, recipe.graphs[0].file).with_suffix(
                            ".bin" if target == "openvino" else Path(recipe.graphs[0].file).suffix
                        )
                        told = [
                            f"{found['largest_difference_of_probabilities']:.1e}",
                            found["labels_changed"],
                            found["pixels"],
                            f"{size.stat().st_size / 1e6:.1f}",
                        ]
                    except UserError as error:
                        told = [f"refused: {str(error)[:80]}", "", "", ""]
                    spent = f"{time.process_time() - start:.0f}"
                    with open(path, "a", newline="") as file:
                        csv.writer(file).writerow([encoder, decoder, target, *told, spent])


def int8(source: str, folder: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        runs = {}
        exact, low = (
            ExportSettings(run=source, to="openvino", output_dir=str(Path(scratch) / "exact")),
            ExportSettings(
                run=source,
                to="openvino",
                output_dir=str(Path(scratch) / "low"),
                int8=True,
                calibrate=folder,
            ),
        )
        for name, settings in (("fp32", exact), ("int8", low)):
            place = export(settings)
            runs[name] = engines.opened(place.with_name(Recipe.read(place).graphs[0].file), 1)
        model = Segmenter.load(source, device="cpu", precision="fp32")
        torch.set_num_threads(1)
        shape = (1, model.record.channels, SIDE, SIDE)
        tile = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        last = torch.from_numpy(tile).contiguous(memory_format=torch.channels_last)

        def by_torch(_):
            with torch.inference_mode():
                return model.network.model(last)

        runs["torch"] = by_torch
        functions = {name: lambda run=run: run(tile) for name, run in runs.items()}
        times = seconds(functions, ROUNDS, time.process_time)
        flags = Path("/proc/cpuinfo").read_text()
        kinds = [kind for kind in ("avx2", "avx512f", "avx512_vnni", "avx_vnni") if kind in flags]
        print(f"processor: {' '.join(kinds)}, {machine.available_cores()} cores; one thread")
        for name, values in times.items():
            against = ratio(times, name, "torch")
            print(f"{name}: {statistics.median(values):.3f} s a tile, {against:.2f} of torch")


if __name__ == "__main__":
    if sys.argv[1:2] == ["parity"]:
        parity(Path(sys.argv[2]))
    else:
        int8(*sys.argv[2:4])
