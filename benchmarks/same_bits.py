"""Fingerprints of what the commands compute, to prove that a restructuring changes none of it.

    python -m benchmarks.same_bits --output after.json
    python -m benchmarks.same_bits --compare benchmarks/same_bits_before.json after.json

Small runs of every self-supervised method, fine-tuning, evaluation, phase maps, objects, the probe
and the export of weights, through the commands and their public flags. Of each run: a hash of every
column of its tables (times and speeds left out), of its weights and of its predicted masks.
``--compare`` names what differs, one line each, and exits 1 where anything does.

``same_bits_before.json`` is of the last commit before the house was rebuilt,
``same_bits_after.json`` of the rebuilt one. Of their 101 runs every value is equal; 94 are new, all
of them boundary F1 (its columns in ``per_image.csv`` and its entries in ``metrics.json`` of 14
evaluations).

Each list is of the commit in its header. Equal bits are promised on one machine with the same
libraries (the header says which; the comparison ignores it): elsewhere, make the list of before
again with this file at that commit. RUNS says by hand what was compared: what is
added to the program later had nothing to be equal to.

Nothing of matssl is imported but the commands, so that one file serves before and after a change.
Pictures are not drawn, since they take longer than the runs.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import datetime
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "ssl": "train_ssl",
    "finetune": "train_finetune",
    "eval": "eval_model",
    "phases": "matssl.tools.phase_map",
    "objects": "matssl.tools.measure",
    "probe": "matssl.tools.probe",
    "export": "matssl.tools.export_weights",
}
STEADY = "--threads 1 --precision fp32 --device cpu --num_workers 0 --quiet"
# What the flags of each command begin with.
BASE = {
    "ssl": f"--data_path pool --view_size 64 --tile_size 64 --steps 4 --batch_size 6 {STEADY}",
    "finetune": f"--steps 6 --val_every 3 --batch_size 2 --crop_size 64 {STEADY}",
    "eval": STEADY,
    "phases": STEADY,
    "objects": "--what objects --min_area 4 --quiet",
    "probe": "--device cpu --threads 1",
    "export": "",
}
# The usual encoder, and one of the same build that is ten times as quick.
RESNET, SMALL = "--encoder resnet18", "--encoder tu-test_resnet"
# Published settings are for three channels, large batches and downloaded weights.
PAPER = "--recipe paper --weights none"
SET = "--finetune_dataset labelled"


@dataclass(frozen=True)
class Run:
    """A command line; ``{NAME}`` in its flags is the folder of the run of that name.

    Attributes:
        name: command, slash, what is special.
        flags: after those of BASE.
        stopped: whether it is broken off once and resumed.
    """

    name: str
    flags: str
    stopped: bool = False

    @property
    def command(self) -> str:
        return self.name.partition("/")[0]

    @property
    def folder(self) -> str:
        """Where its results lie, below the working folder."""
        word = self.name.partition("/")[2]
        if self.command == "export":
            return f"export/{word}.pth"
        if self.command == "objects":
            return f"experiments/measure/{word}"
        return f"experiments/{self.name}"

    @property
    def needs(self) -> list[str]:
        return re.findall(r"\{([^}]+)\}", self.flags)

    def words(self) -> list[str]:
        """Return the arguments of the command."""
        flags = re.sub(r"\{([^}]+)\}", lambda found: BY_NAME[found[1]].folder, self.flags)
        words = shlex.split(f"{flags} {BASE[self.command]}")
        # What a run says itself beats the base; epochs are another plan than steps.
        said = [word for word in shlex.split(flags) if word.startswith("--")]
        for name in [*said, *(["--steps"] if "--epochs" in said else [])]:
            while words.count(name) > (name in said):
                place = len(words) - 1 - words[::-1].index(name)
                del words[place : place + 2]
        if self.command == "probe":
            return words
        if self.command == "export":
            Path(self.folder).parent.mkdir(exist_ok=True)
            return [*words, "--output", self.folder]
        return [*words, "--name", self.name.partition("/")[2]]


RUNS = [
    # Every method as its two recipes have it.
    Run("ssl/matssl", f"--model matssl {RESNET}"),
    Run("ssl/simclr", f"--model simclr {SMALL}"),
    Run("ssl/mocov2", f"--model mocov2 {RESNET}"),
    Run("ssl/densecl", f"--model densecl {SMALL}"),
    Run("ssl/byol", f"--model byol {SMALL}"),
    Run("ssl/pscl", f"--model pscl {SMALL} --labeled_path labelled"),
    Run("ssl/pscl-simclr", f"--model pscl-simclr {SMALL} --labeled_path labelled"),
    Run("ssl/pscl-moco", f"--model pscl-moco {SMALL} --labeled_path labelled"),
    Run("ssl/slotcon", f"--model slotcon {SMALL}"),
    Run("ssl/spark", f"--model spark {RESNET}"),
    Run("ssl/matssl-paper", f"--model matssl {PAPER} {SMALL}"),
    Run("ssl/simclr-paper", f"--model simclr {PAPER} {SMALL}"),
    Run("ssl/mocov2-paper", f"--model mocov2 {PAPER} {SMALL} --batch_size 16"),
    Run("ssl/densecl-paper", f"--model densecl {PAPER} {SMALL} --batch_size 16"),
    Run("ssl/byol-paper", f"--model byol {PAPER} {SMALL}"),
    Run("ssl/pscl-paper", f"--model pscl {PAPER} --labeled_path labelled"),
    Run("ssl/pscl-simclr-paper", f"--model pscl-simclr {PAPER} --labeled_path labelled"),
    Run("ssl/pscl-moco-paper", f"--model pscl-moco {PAPER} --labeled_path labelled"),
    Run("ssl/slotcon-paper", f"--model slotcon {PAPER} {SMALL} --steps 2"),
    Run("ssl/spark-paper", f"--model spark {PAPER} {SMALL}"),
    # What the methods can be told.
    Run("ssl/matssl-standardised", f"--model matssl {SMALL} --standardise_stages --epochs 1"),
    Run("ssl/matssl-narrow", f"--model matssl {SMALL} --hidden_dim 24 --global_output_dim 8"),
    Run("ssl/simclr-same-negatives", f"--model simclr {SMALL} --group_negatives keep"),
    Run(
        "ssl/simclr-own-negatives",
        f"--model simclr {SMALL} --group_negatives drop --group_regex ^([a-z_]+)_ "
        "--temperature 0.3",
    ),
    Run(
        "ssl/mocov2-symmetric",
        f"--model mocov2 {SMALL} --symmetric --bn_splits 3 --queue_size 12 --ema_schedule cosine",
    ),
    Run("ssl/mocov2-whole-batch", f"--model mocov2 {SMALL} --bn_splits 1 --ema_momentum 0.9"),
    Run(
        "ssl/densecl-features",
        f"--model densecl {SMALL} --dense_match features --dense_stage 4 --dense_warmup_steps 2 "
        "--dense_output_dim 16 --dense_weight 0.3",
    ),
    Run("ssl/densecl-geometry", f"--model densecl {SMALL} --dense_match geometry --dense_stage 2"),
    Run("ssl/byol-constant", f"--model byol {SMALL} --ema_schedule constant --optimizer lars"),
    Run(
        "ssl/pscl-unetplusplus",
        f"--model pscl {SMALL} --decoder unetplusplus --labeled_path labelled --labeled_count 2 "
        "--global_local_ratio 0.4 --top_k 3 --sample_ratio 1.5",
    ),
    Run(
        "ssl/pscl-moco-batches",
        f"--model pscl-moco {SMALL} --labeled_path labelled --batch_csv batches.csv",
    ),
    Run(
        "ssl/pscl-small-unet",
        "--model pscl --encoder small_unet --decoder small_unet --labeled_path labelled",
    ),
    Run(
        "ssl/slotcon-stage",
        f"--model slotcon {SMALL} --dense_stage 3 --prototypes 8 --group_loss_weight 0.8 "
        "--teacher_temperature 0.06 --student_temperature 0.2 --center_momentum 0.8",
    ),
    Run("ssl/spark-dense", f"--model spark {SMALL} --masking dense --target pixels"),
    Run("ssl/spark-light", f"--model spark {SMALL} --decoder light --patch_size 32"),
    Run(
        "ssl/spark-unetplusplus",
        f"--model spark {SMALL} --decoder unetplusplus --mask_ratio 0.4 --target pixels",
    ),
    # What all of them share: optimisers, schedules, views, images, the probe, a start from weights.
    Run("ssl/sgd", f"--model simclr {SMALL} --optimizer sgd --decay_all --schedule constant"),
    Run("ssl/lamb", f"--model simclr {SMALL} --optimizer lamb --schedule cosine_floor --clip 0"),
    Run(
        "ssl/schedules",
        f"--model simclr {SMALL} --optimizer adam --schedule cosine_epoch --weight_decay_end 0.2 "
        "--warmup 0.5 --lr_scaling linear --steps 6 --batch_size 24",
    ),
    Run("ssl/whole-views", f"--model simclr {SMALL} --first_view whole --scale_min 0.6"),
    Run(
        "ssl/second-views",
        f"--model simclr {SMALL} --second_blur_p 1 --second_solarise_p 1 --solarise_p 0.2 "
        "--d4 flips --brightness 0.5 --blur_sigma 2 --noise_sigma 0.1 --seed 3",
    ),
    Run(
        "ssl/probed",
        f"--model simclr {SMALL} --probe_path labelled --probe_every 2 --snapshot_every 2",
    ),
    Run("ssl/looked-at", f"--model simclr {SMALL} --steps 26 --view_size 32"),
    Run("ssl/rgb", f"--model matssl {SMALL} --data_path rgb --color rgb --in_channels 3"),
    Run(
        "ssl/deep",
        f"--model simclr {SMALL} --data_path deep --window percentile --target_pixel_size 30nm "
        "--cache_dir none",
    ),
    Run("ssl/fixed", f"--model simclr {SMALL} --window fixed --low 30 --high 220 --in_channels 3"),
    Run(
        "ssl/from-weights",
        f"--model byol {SMALL} --weights {{ssl/simclr}}/encoder.safetensors --tile_size 80",
    ),
    Run("ssl/resumed", f"--model mocov2 {SMALL} --steps 9", stopped=True),
    # Fine-tuning: architectures, starts, data, objectives.
    Run("finetune/unet", f"{SET} {RESNET}"),
    Run("finetune/unetplusplus", f"{SET} {SMALL} --decoder unetplusplus"),
    Run("finetune/small-unet", f"{SET} --encoder small_unet --decoder small_unet"),
    Run("finetune/ssl", f"{SET} --ssl_weights_path {{ssl/matssl}}/encoder.safetensors"),
    Run("finetune/ssl-run", f"{SET} --ssl_weights_path {{ssl/densecl}}"),
    Run("finetune/spark", f"{SET} --ssl_weights_path {{ssl/spark}}/encoder.safetensors"),
    Run(
        "finetune/spark-encoder",
        f"{SET} --ssl_weights_path {{ssl/spark}}/last.ckpt --no-pretrained_decoder",
    ),
    Run("finetune/pscl", f"{SET} --ssl_weights_path {{ssl/pscl-small-unet}}/encoder.safetensors"),
    Run("finetune/folds", f"--finetune_dataset few {SMALL}"),
    Run("finetune/halves", f"--finetune_dataset few {SMALL} --max_train_images 1 --steps 4"),
    Run("finetune/input-size", f"{SET} {SMALL} --input_size 64"),
    Run("finetune/frozen", f"{SET} {SMALL} --freeze_encoder_steps 4 --encoder_lr_factor 0.1"),
    Run("finetune/no-average", f"{SET} {SMALL} --ema 0 --schedule constant --clip 0"),
    Run("finetune/dice", f"{SET} {SMALL} --loss dice --patience 1 --val_every 1"),
    Run("finetune/ce", f"{SET} {SMALL} --loss ce --class_weights balanced"),
    Run("finetune/focal", f"{SET} {SMALL} --loss_function Focal --custom_lr 0.002"),
    Run("finetune/bce", f"--finetune_dataset binary {SMALL} --loss bce --crop_size 96"),
    Run("finetune/weighted", f"{SET} {SMALL} --loss dice_ce --class_weights 1,2,5"),
    Run("finetune/rgb", f"--finetune_dataset colours {SMALL} --color rgb --in_channels 3"),
    Run("finetune/split", f"--finetune_dataset colours {SMALL} --val_fraction 0.4 --seed 2"),
    Run(
        "finetune/augmented",
        f"{SET} {SMALL} --scale_jitter 0.3 --illumination 0.2 --d4 hflip --rare_class_p 0.9 "
        "--blur_p 0.7 --noise_p 0.7 --window percentile --snapshot_every 3 --data_ratio 0.6",
    ),
    Run("finetune/paper", f"{SET} --recipe paper --weights none {RESNET} --epochs 2"),
    Run("finetune/pscl-paper", f"{SET} --recipe pscl --epochs 1"),
    Run("finetune/aachen", f"--finetune_dataset binary --recipe aachen --weights none {SMALL}"),
    Run("finetune/classes", f"{SET} {SMALL} --classes merged.yaml --group_regex ^(.*)_"),
    Run("finetune/resumed", f"{SET} {SMALL} --steps 9", stopped=True),
    # Evaluation: with and without masks, every way to predict.
    Run("eval/test", "--model_path {finetune/unet}/best.ckpt --dataset labelled"),
    Run("eval/last", "--model_path {finetune/unet}/last.ckpt --dataset labelled --split val"),
    Run(
        "eval/no-masks",
        "--model_path {finetune/unet}/best.ckpt --dataset plain --save_probabilities",
    ),
    Run(
        "eval/tta",
        "--model_path {finetune/unet}/best.ckpt --dataset labelled --tta --save_probabilities",
    ),
    Run(
        "eval/tiles",
        "--model_path {finetune/unet}/best.ckpt --dataset labelled --split train --tile_size 64 "
        "--overlap 16 --batch_size 3 --save_probabilities --no-baselines --exclude_classes blocky",
    ),
    Run(
        "eval/input-size",
        "--model_path {finetune/unet}/best.ckpt --dataset labelled --input_size 64",
    ),
    Run("eval/resized", "--model_path {finetune/input-size}/best.ckpt --dataset labelled"),
    Run("eval/unetplusplus", "--model_path {finetune/unetplusplus}/best.ckpt --dataset labelled"),
    Run("eval/small-unet", "--model_path {finetune/small-unet}/best.ckpt --dataset labelled"),
    Run("eval/spark", "--model_path {finetune/spark}/best.ckpt --dataset labelled"),
    Run("eval/rgb", "--model_path {finetune/rgb}/best.ckpt --dataset colours --split val"),
    Run("eval/binary", "--model_path {finetune/bce}/best.ckpt --dataset binary"),
    Run("eval/bar", "--model_path {finetune/bce}/best.ckpt --dataset bar --pixel_size 20nm"),
    Run(
        "eval/specimens",
        "--model_path {finetune/folds}/best.ckpt --dataset few --group_regex ^(specimen.) --seed 5",
    ),
    Run("eval/raw", "--model_path {finetune/paper}/raw.pt --dataset labelled --input_size 64"),
    # Phase maps of prototypes and of clusters, objects of everything, probe and export.
    Run("phases/prototypes", "--model_path {ssl/slotcon} --data plain"),
    Run("phases/joined", "--model_path {ssl/slotcon} --data plain --phases 2 --tta --smooth 0"),
    Run("phases/clusters", "--model_path {ssl/matssl} --data plain --names a,b,c"),
    Run("phases/spark", "--model_path {ssl/spark}/last.ckpt --data bar/test --pixel_size 5nm"),
    Run("objects/predicted", "{eval/test}"),
    Run("objects/bar", "{eval/bar}"),
    Run("objects/phases", "{phases/clusters}"),
    Run("objects/labels", "labelled --pixel_size 12.5nm --group_regex ^(specimen.)"),
    Run("probe/encoders", "none {ssl/matssl} {ssl/probed} --probe_path labelled"),
    Run("export/torchvision", "{ssl/matssl}"),
    Run("export/smp", "{finetune/unet} --layout smp --channels 3"),
]
BY_NAME = {run.name: run for run in RUNS}

# Columns that a clock writes.
TIMES = {"views_per_s", "wait_share", "seconds"}
# Parts of JSON files that name places, or repeat what was typed.
PLACES = {"model", "dataset"}
TABLES = ("metrics", "evaluation_results", "folds", "phases", "classes")


def digest(*parts: bytes | str) -> str:
    """Return the first ten digits of the SHA-256 of some content."""
    state = hashlib.sha256()
    for part in parts:
        state.update(part.encode() if isinstance(part, str) else part)
        state.update(b"\0")
    return state.hexdigest()[:10]


def of_array(values: NDArray[Any]) -> str:
    return digest(str(values.dtype), str(values.shape), np.ascontiguousarray(values).tobytes())


def of_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return one hash of names and shapes, and one of the values that a renaming leaves."""
    values = sorted(of_array(tensor.detach().numpy()) for tensor in tensors.values())
    names = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return {"names": digest(*names), "values": digest(*values)}


def of_optimizer(state: Mapping[str, Any]) -> str:
    """Return a hash of moments and settings, in the order of the parameters."""
    parts = []
    for number, moments in sorted(state["state"].items()):
        for name, value in sorted(moments.items()):
            shown = of_array(value.numpy()) if isinstance(value, torch.Tensor) else repr(value)
            parts.append(f"{number} {name} {shown}")
    for group in state["param_groups"]:
        parts.append(repr(sorted((key, group[key]) for key in group)))
    return digest(*parts)


def of_checkpoint(path: Path) -> dict[str, str]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    found = of_tensors(content["state"])
    if "optimizer" in content:
        found["optimizer"] = of_optimizer(content["optimizer"])
    for key in ("step", "preprocess", "classes"):
        if key in content:
            found[key] = of_json(content[key])
    found["lineage"] = of_lineage(content["lineage"])
    numbers = {k: v for k, v in content["progress"].items() if isinstance(v, int | float)}
    found["progress"] = of_json(numbers)
    return found


def of_json(value: Any) -> str:
    return digest(json.dumps(value, sort_keys=True))


def of_leaves(content: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Return a hash of each value of a JSON file, by the names that lead to it."""
    found: dict[str, str] = {}
    for key, value in content.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= of_leaves(value, f"{name}: ")
        elif name == "lineage":
            found[name] = of_lineage(value)
        elif name not in PLACES:
            found[name] = of_json(value)
    return found


def of_lineage(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return a hash of all but the hashes of whole files, which also hold settings."""
    return of_json([{k: v for k, v in e.items() if k != "sha256"} for e in entries])


def of_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a hash of each column of a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {
        name: digest(*(str(row.get(name)) for row in rows)) for name in names if name not in TIMES
    }


def of_file(path: Path) -> dict[str, str] | None:
    """Return the hashes of a file's parts, None where it holds no result."""
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            return of_columns(list(csv.DictReader(file)))
    if path.suffix == ".jsonl":
        return of_columns([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    if path.suffix == ".ckpt":
        return of_checkpoint(path)
    if path.suffix == ".safetensors":
        return of_tensors(load_file(path))
    if path.suffix == ".pth" and path.parent.name == "export":
        return of_tensors(torch.load(path, weights_only=True))
    if path.suffix == ".json" and path.stem in TABLES:
        return of_leaves(json.loads(path.read_text("utf-8")))
    if path.suffix == ".npy":
        return {"values": of_array(np.load(path))}
    return None


def of_images(folder: Path) -> dict[str, str]:
    """Return a hash of the pixels of each image in a folder."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tif":
            pixels = tifffile.imread(path)
        else:
            encoded = np.frombuffer(path.read_bytes(), np.uint8)
            pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            with Image.open(path) as picture:
                # Of a palette its indices: they are what was written before there was one.
                pixels = np.array(picture) if picture.mode == "P" else pixels
        found[path.name] = of_array(pixels)
    return found


def of_folder(root: Path) -> dict[str, dict[str, str]]:
    """Return the hashes of all results in a run folder, by file."""
    found: dict[str, dict[str, str]] = {}
    if root.is_file():
        return {root.name: of_file(root) or {}}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and re.match(r"(masks|maps)/|probabilities$", name):
            found[name] = of_images(path)
        elif path.is_file() and (parts := of_file(path)):
            found[name] = parts
    return found


def make_data() -> None:
    """Write the sets of all runs to the working folder."""
    synthetic = importlib.import_module("matssl.tools.make_synthetic").main
    for line in (
        "pools --train 0 --val 0 --test 0 --pool 12 --size 128 --seed 1",
        "labelled --kind two_phase --train 4 --val 2 --test 2 --size 96",
        "few --kind particles --train 3 --val 0 --test 3 --size 80 --seed 2",
        "binary --kind polycrystal --train 4 --val 2 --test 2 --size 96 --seed 3",
        "bar --kind polycrystal --train 0 --val 0 --test 3 --size 112 --seed 4 --bar",
    ):
        if synthetic(shlex.split(line)):
            raise RuntimeError(f"make_synthetic {line} failed")
    Path("pools/pool").rename("pool")
    for name in ("few", "bar"):
        for split in ("train", "val", "test"):
            for folder in (Path(name, split), Path(name, f"{split}_annot")):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
    Path("merged.yaml").write_text("classes:\n  speckled: 0\n  other: [1, 2]\n")
    for folder in ("plain", "rgb", "deep", "colours/images", "colours/masks"):
        Path(folder).mkdir(parents=True)
    pool = sorted(Path("pool").glob("*.png"))
    palette = np.array([[20, 20, 200], [200, 200, 20], [20, 200, 20]], np.uint8)
    for number, path in enumerate(pool):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        tint = np.stack([grey, 255 - grey // (2 + number % 3), grey[::-1]], axis=-1)
        cv2.imwrite(f"rgb/{path.stem}.png", tint)
        scaled = grey.astype(np.uint16) * 37 + 500 * number
        options = {"imagej": True, "resolution": (1 / 0.02, 1 / 0.02), "metadata": {"unit": "um"}}
        tifffile.imwrite(f"deep/{path.stem}.tif", scaled, **options)
        if number % 4 == 0:
            shutil.copyfile(path, f"plain/{path.name}")
    for path in sorted(Path("labelled").glob("t*/*.png")):
        if path.parent.name.endswith("_annot"):
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(f"colours/masks/{path.name}", palette[mask])
        else:
            grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            tint = np.stack([grey, grey[:, ::-1], 255 - grey], axis=-1)
            cv2.imwrite(f"colours/images/{path.name}", tint)
    labelled = sorted(Path("labelled/train").glob("*.png"))
    rows = [f"{path.name},batch{number % 3}" for number, path in enumerate([*pool, *labelled])]
    Path("batches.csv").write_text("\n".join(["file,batch", *rows]) + "\n")


def execute(run: Run) -> dict[str, dict[str, str]]:
    """Do a run and return its hashes, by file.

    Raises:
        RuntimeError: the command failed; what it said is in the message.
    """
    main = importlib.import_module(MODULES[run.command]).main
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            if run.stopped:
                _broken_off(run, main)
            else:
                main(run.words())
    except BaseException as error:
        command = shlex.join([MODULES[run.command], *run.words()])
        raise RuntimeError(f"{command}\n{said.getvalue()}") from error
    if run.command == "probe":
        return {"said": {"scores": digest(said.getvalue())}}
    found = of_folder(Path(run.folder))
    if not found:
        raise RuntimeError(f"{run.name} left no results in {run.folder}")
    if run.name == "finetune/paper":
        state = torch.load(Path(run.folder, "best.ckpt"), weights_only=True)["state"]
        torch.save(state, Path(run.folder, "raw.pt"))
    return found


def _broken_off(run: Run, main: Callable[[Sequence[str]], Any]) -> None:
    """End a run by SIGTERM after its second step, wherever that stops it, and resume it."""
    steps = Path(run.folder, "steps.csv")

    def end() -> None:
        while not steps.is_file() or len(steps.read_bytes().splitlines()) < 3:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    # Should the run be quicker than the signal, it goes nowhere.
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    watcher = threading.Thread(target=end, daemon=True)
    try:
        watcher.start()
        try:
            main(run.words())
        except SystemExit as stop:
            if stop.code != 143:
                raise
            main([*run.words(), "--resume"])
        watcher.join()
    finally:
        signal.signal(signal.SIGTERM, before)


def chosen(pattern: str) -> list[Run]:
    """Return the runs that a pattern names, with those they need, in the order of the table."""
    wanted = {run.name for run in RUNS if re.search(pattern, run.name)}
    for run in reversed(RUNS):
        if run.name in wanted:
            wanted |= set(run.needs)
    return [run for run in RUNS if run.name in wanted]


@contextlib.contextmanager
def workplace() -> Iterator[None]:
    """Work in a new folder, with pictures of one pixel and without settings of the environment."""
    from matplotlib.figure import Figure

    pixel = cv2.imencode(".png", np.full((1, 1, 3), 255, np.uint8))[1].tobytes()
    drawn, fitted, home = Figure.savefig, Figure.tight_layout, Path.cwd()

    def savefig(figure: Figure, place: Any, **options: Any) -> None:
        Path(place).write_bytes(pixel)

    for name in [name for name in os.environ if name.startswith("SSL_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="same_bits") as folder:
        os.chdir(folder)
        Figure.savefig = savefig
        Figure.tight_layout = lambda figure, **options: None
        try:
            yield
        finally:
            Figure.savefig, Figure.tight_layout = drawn, fitted
            os.chdir(home)


def measure(runs: Sequence[Run]) -> dict[str, dict[str, dict[str, str]]]:
    """Return the hashes of all runs; what no later run needs is deleted at once."""
    results = {}
    with workplace():
        make_data()
        sets = sorted(path for path in Path().rglob("*") if path.is_file())
        results["data"] = {"files": {str(path): digest(path.read_bytes()) for path in sets}}
        for number, run in enumerate(runs):
            started = time.process_time()
            results[run.name] = execute(run)
            seconds = time.process_time() - started
            print(f"{seconds:5.1f} s  {run.name}", flush=True)
            later = {name for other in runs[number + 1 :] for name in other.needs}
            for done in runs[: number + 1]:
                if done.name not in later and Path(done.folder).is_dir():
                    shutil.rmtree(done.folder)
    return results


def header() -> dict[str, Any]:
    def git(*words: str) -> str:
        said = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return said.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": git("rev-parse", "HEAD") + ("+" if changed else ""),
        "command": shlex.join(["python", "-m", "benchmarks.same_bits", *sys.argv[1:]]),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs between two lists of hashes, a line each."""
    lines = []
    for run in dict.fromkeys([*before, *after]):
        if run not in after or run not in before:
            lines.append(f"{run}: only in the {'first' if run in before else 'second'}")
            continue
        for file in dict.fromkeys([*before[run], *after[run]]):
            old, new = before[run].get(file), after[run].get(file)
            if old is None or new is None:
                lines.append(f"{run} {file}: only in the {'second' if old is None else 'first'}")
                continue
            for part in dict.fromkeys([*old, *new]):
                if part not in old or part not in new:
                    which = "second" if part not in old else "first"
                    lines.append(f"{run} {file} {part}: only in the {which}")
                elif old[part] != new[part]:
                    lines.append(f"{run} {file} {part}: {old[part]} is now {new[part]}")
    return lines


def compare(old: Path, new: Path, only: str = "") -> int:
    """Print the differences between two files; return 1 where there are any.

    Args:
        old: the first.
        new: the second.
        only: regular expression of the runs to compare.
    """
    first, second = (json.loads(path.read_text("utf-8")) for path in (old, new))
    for key in ("cpu", "torch", "numpy", "opencv"):
        if first["header"][key] != second["header"][key]:
            print(f"note: {key} was {first['header'][key]}, is {second['header'][key]}")
    old_runs, new_runs = (
        {name: run for name, run in content["runs"].items() if re.search(only, name)}
        for content in (first, second)
    )
    lines = differences(old_runs, new_runs)
    print(*lines, sep="\n", end="\n" if lines else "")
    both = len(old_runs.keys() & new_runs.keys())
    print(f"{len(lines)} differences in {both} runs" if lines else f"{both} runs are equal")
    return 1 if lines else 0


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="file to write the hashes to")
    parser.add_argument("--only", default="", help="regular expression of runs to do or compare")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"))
    args = parser.parse_args(argv)
    if args.compare:
        return compare(*args.compare, args.only)
    output = args.output.resolve() if args.output else None
    facts = header()
    sys.path.insert(0, str(ROOT))
    results = measure(chosen(args.only))
    print(f"{len(results)} runs in {time.process_time():.0f} s of one core")
    # A line a file, so that a change of the list can be read.
    lines = []
    for name, files in results.items():
        inner = [f"   {json.dumps(file)}: {json.dumps(parts)}" for file, parts in files.items()]
        lines.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n  }")
    head = json.dumps(facts, indent=2).replace("\n", "\n ")
    text = f'{{\n "header": {head},\n "runs": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    if output:
        output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
