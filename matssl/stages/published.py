"""Settings of published codes in ours: MatSSL's environment, the SimCLR study's YAML files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.parsing import read_settings

# What MatSSL reads from the environment and from .env; SSL_BATCH_SIZE and SSL_WORKERS, which its
# .env lists too, were never read.
ENVIRONMENT = {
    "SSL_INPUT_SIZE": "view_size",
    "SSL_LR": "lr",
    "SSL_MOMENTUM": "momentum",
    "SSL_WEIGHT_DECAY": "weight_decay",
    "SSL_EPOCHS": "epochs",
    "SSL_EXP_PATH": "output_dir",
}
# The study's data sets are fetched by these names.
STUDY_DATA = {"cifar10": "cifar10", "cats_vs_dogs": "cats_vs_dogs", "oxford_pets": "oxford-pets"}
STUDY_WEIGHTS = "experiments/pretrained_models/{}_simclr_backbone.ckpt"
# Keys of both kinds of the study's files, ours, and what becomes of the value.
STUDY = {
    "model.backbone": "encoder",
    "training.batch_size": "batch_size",
    "training.learning_rate": "lr",
    "training.epochs": "epochs",
}
STUDY_PRETRAIN = {
    **STUDY,
    "model.projection_dim": "global_output_dim",
    "model.hidden_dim": "hidden_dim",
    "model.temperature": "temperature",
    "training.optimizer": "optimizer",
    "training.weight_decay": "weight_decay",
    "data.dataset": "data_path",
    "data.image_size": "view_size",
    "data.augmentations.color_distortion_strength": "contrast",
    "data.augmentations.gaussian_blur_sigma": "blur_sigma",
    "experiment.name": "name",
}
STUDY_FINETUNE = {
    **STUDY,
    "model.decoder": "decoder",
    "model.pretrained_path": "ssl_weights_path",
    "model.freeze_backbone": "freeze_encoder_steps",
    "training.loss_function": "loss",
    "data.dataset": "finetune_dataset",
    "data.image_size": "input_size",
    "data.data_ratio": "data_ratio",
    "experiment.name": "note",
}
# SimCLR's full colour distortion changes brightness and contrast by up to 0.8.
FULL_DISTORTION = 0.8
FOR_EVER = 10**9


def environment(folder: Path = Path()) -> dict[str, str]:
    """Return our settings for MatSSL's variables; a variable that is set beats ``.env``.

    Args:
        folder: where ``.env`` may lie.
    """
    found: dict[str, str] = {}
    file = folder / ".env"
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            name, sign, value = line.strip().removeprefix("export ").partition("=")
            if sign and not name.strip().startswith("#"):
                found[name.strip()] = value.split(" #")[0].strip().strip("\"'")
    found |= {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    values = {ENVIRONMENT[k]: v for k, v in found.items() if k in ENVIRONMENT and v}
    if "output_dir" in values:
        # Runs go to OUTPUT_DIR/ssl/NAME; the published default is ./experiments/ssl.
        path = Path(values["output_dir"])
        values["output_dir"] = str(path.parent if path.name == "ssl" else path)
    return values


def read(path: str, finetune: bool) -> dict[str, object]:
    """Return the settings in a ``--config`` file, which may be one of the SimCLR study.

    Args:
        path: YAML or JSON.
        finetune: whether it is for train_finetune.py.

    Raises:
        UserError: it cannot be read, or says what has no counterpart.
    """
    content = read_settings(Path(path))
    if not is_simclr_study(content):
        return content
    return simclr_study(content, finetune, path)[0]


def notes(path: str | None, finetune: bool) -> list[str]:
    """Return what to tell of a ``--config`` file of the SimCLR study; nothing of other files.

    Args:
        path: of the file, None without one.
        finetune: whether it is for train_finetune.py.
    """
    content = read_settings(Path(path)) if path else {}
    if not is_simclr_study(content):
        return []
    told = [f"{path} is read as a file of the SimCLR study"]
    unused = simclr_study(content, finetune, str(path))[1]
    if unused:
        told.append(f"without counterpart here: {', '.join(unused)}")
    return told


def is_simclr_study(content: Mapping[str, object]) -> bool:
    """Whether a YAML file has the parts of the SimCLR study's instead of lines of ours."""
    return all(isinstance(content.get(part), Mapping) for part in ("model", "training", "data"))


def simclr_study(
    content: Mapping[str, object], finetune: bool, source: str
) -> tuple[dict[str, object], list[str]]:
    """Return our settings for a file of the SimCLR study, and its keys that mean nothing here.

    Args:
        content: as YAML reads it; ``1e-4`` may be text.
        finetune: whether it is for train_finetune.py.
        source: named in errors.

    Raises:
        UserError: a value without counterpart.
    """
    table = STUDY_FINETUNE if finetune else STUDY_PRETRAIN
    values: dict[str, Any] = {}
    unused = []
    for key, value in _flat(content):
        if key in table:
            values[table[key]] = value
        else:
            unused.append(key)
    name = "finetune_dataset" if finetune else "data_path"
    if name in values:
        values[name] = f"datasets/{STUDY_DATA.get(values[name], values[name])}"
    if finetune:
        values |= {"in_channels": 3, "weight_decay": 0.0}
        values["loss"] = str(values.get("loss", "BCE")).lower()
        values["crop_size"] = values.get("input_size", 224)
        values["freeze_encoder_steps"] = FOR_EVER if values.get("freeze_encoder_steps") else 0
    else:
        values |= {"recipe": "paper", "model": "simclr", "lr_scaling": "none"}
        optimizer = str(values.get("optimizer", "LARS")).lower()
        if optimizer not in ("lars", "adam"):
            raise UserError(f"{source}: training.optimizer must be LARS or Adam, not {optimizer}")
        values["optimizer"] = "lars" if optimizer == "lars" else "adamw"
        if "contrast" in values:
            strength = FULL_DISTORTION * float(values["contrast"])
            values |= {"contrast": strength, "brightness": strength}
        if "blur_sigma" in values:
            values["blur_sigma"] = max(values["blur_sigma"])
    return values, unused


def _flat(content: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
