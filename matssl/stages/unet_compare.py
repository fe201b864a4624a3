"""Settings files of unet-compare in ours: one of them trains or predicts, by operation_mode."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.stages.unet_compare_keys import (
    BLOCKS,
    DECODERS,
    ENCODERS,
    INFERENCE,
    KEYS,
    STARTS,
    TRAIN,
    read,
)

CODE = "unet-compare"
# Where a data set lies that is a name alone.
FOLDER = Path("data")
AUTO_SPLIT = 0.4
# Copies of an image that its augmentation makes: four turns, each of them mirrored too.
ORIENTATIONS = 8
# Fine-tuning as it is there: Adam at a constant rate on whole images in colour, no grey changes.
TUNED: dict[str, object] = {
    "window": "dtype",
    "color": "rgb",
    "in_channels": 3,
    "loss": "ce",
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "clip": 0.0,
    "ema": 0.0,
    "rare_class_p": 0.0,
    "whole_images": True,
    "input_size": None,
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "blur_p": 0.0,
    "noise_p": 0.0,
    "val_epochs": 1,
}


def training(content: Mapping[str, object], source: str) -> dict[str, object]:
    """Return our settings of a fine-tuning.

    Args:
        content: of the file.
        source: named in errors.

    Raises:
        UserError: the file is for a prediction, or see :func:`read`.
    """
    values = read(content, source)
    if values["operation_mode"] == INFERENCE:
        raise UserError(
            f"{source} is for a prediction (operation_mode inference): python eval_model.py "
            f"--config {source}"
        )
    own = values["encoder_name"] == "UNet"
    augment = values["augment"]
    encoder = ENCODERS[values["encoder_name"]]
    found: dict[str, object] = TUNED | {
        "finetune_dataset": folder(values["dataset_name"]),
        "results_dir": values["results_dir"] or results_name(values),
        "encoder": encoder,
        "decoder": DECODERS[values["decoder_name"]],
        "decoder_filters": values["decoder_filters"],
        "batchnorm": values["batchnorm"],
        "weights": "none" if own else STARTS[values["backbone_weights"]],
        "finetune_blocks": "all" if own else _unfrozen(values),
        "lr": values["learning_rate"],
        "l2": values["L2_regularization_strength"],
        "monitor": "f1" if values["monitor_f1"] else "loss",
        "threshold": values["metric_threshold"],
        "batch_size": values["batch_size"],
        "epochs": values["num_epochs"],
        "epoch_views": ORIENTATIONS if augment else 1,
        "d4": "each" if augment else "none",
        "patience": values["patience"] or 0,
    }
    if own:
        found["encoder_filters"] = values["encoder_filters"]
    if values["cross_validation"]:
        found |= {"folds": str(values["num_folds"]), "training_set": ["all"]}
    lists = ("training_set", "validation_set", "auto_split")
    found |= {name: values[name] for name in lists if values[name] is not None}
    if not values["cross_validation"] and not any(values[name] is not None for name in lists):
        found["auto_split"] = AUTO_SPLIT
    return found


def inference(content: Mapping[str, object], source: str) -> dict[str, object]:
    """Return our settings of an evaluation.

    Args:
        content: of the file.
        source: named in errors.

    Raises:
        UserError: the file is for a training, or see :func:`read`.
    """
    values = read(content, source)
    if values["operation_mode"] == TRAIN:
        raise UserError(
            f"{source} is for a training (operation_mode train): python train_finetune.py "
            f"--config {source}"
        )
    found = {
        "model_path": values["model_path"],
        "dataset": folder(values["dataset_name"]),
        "results_dir": values["results_dir"] or results_name(values),
    }
    # Else it is that of the training, which the checkpoint holds.
    given = "metric_threshold" in content
    return found | ({"threshold": values["metric_threshold"]} if given else {})


def notes(content: Mapping[str, Any], source: str) -> list[str]:
    """Return what to tell of a file that was read: what it is taken for, what says nothing there.

    Args:
        content: of the file.
        source: its path.
    """
    values = read(content, source)
    mode = values["operation_mode"]
    told = [f"{source} is read as a file of {CODE}"]
    idle = [key for key in content if mode not in KEYS[key].modes]
    if mode == TRAIN and values["encoder_name"] == "UNet":
        idle += [key for key in ("backbone_weights", "backbone_finetuning") if key in content]
    if mode == TRAIN and values["encoder_name"] != "UNet":
        idle += [key for key in ("encoder_filters",) if key in content]
    if idle:
        told.append(f"without effect in this file: {', '.join(dict.fromkeys(idle))}")
    size = values["batch_size"]
    if mode == TRAIN and size & (size - 1):
        told.append(f"batch_size {size} is no power of 2, which most hardware is quickest with")
    return told


def folder(name: str) -> str:
    """Return the folder of a data set: ``data/NAME`` where it is there, else the path as it is."""
    inside = str(FOLDER / name)
    # os.path asks whether a name that no file system takes is one; it is none.
    return name if os.path.isdir(name) and not os.path.isdir(inside) else inside


def results_name(values: Mapping[str, Any]) -> str:
    """Return the folder of the results where the file names none; the time is that of the call."""
    mode = values["operation_mode"]
    words = ["results", Path(values["dataset_name"]).name, mode]
    if mode == TRAIN:
        words += [values["encoder_name"], values["decoder_name"]]
        words += ["crossval"] if values["cross_validation"] else []
    return "_".join([*words, time.strftime("(%Y-%m-%d)_(%H-%M-%S)")])


def _unfrozen(values: Mapping[str, Any]) -> str:
    """Return the blocks of EfficientNet-B7 that learn, as --finetune_blocks has them."""
    chosen = values["backbone_finetuning"]
    if values["backbone_weights"] == "random":
        return "all"
    if chosen is False:
        return "none"
    # All of them are named: BatchNorm keeps its statistics as there.
    return ",".join(map(str, range(1, BLOCKS + 1) if chosen is True else sorted(chosen)))
