"""Settings of published codes in ours: MatSSL's environment, files of the SimCLR study and others.

Those of unet-compare are understood in :mod:`matssl.stages.unet_compare`; whose file one is, its
keys say.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.core.parsing import read_settings
from matssl.stages import unet_compare
from matssl.stages.unet_compare_keys import KEYS
from matssl.stages.unet_compare_keys import read as read_keys

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
# Parts of the study's files; the last may be absent.
STUDY_CODE, STUDY_PARTS = "the SimCLR study", ("model", "training", "data", "experiment")
# The study's data sets are fetched by these names; the weights it got from them go by others.
STUDY_DATA = {"cifar10": "cifar10", "cats_vs_dogs": "cats_vs_dogs", "oxford_pets": "oxford-pets"}
STUDY_WEIGHTS = "experiments/pretrained_models/{}_simclr_backbone.ckpt"
# Its README and its scripts call one file by two names.
STUDY_NAMES = {"cifar10": ("cifar",), "cats_vs_dogs": ("pets", "pet")}
# Keys of both kinds of the study's files and ours.
STUDY = {
    "model.backbone": "encoder",
    "model.encoder": "encoder",
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
    "data.dataset_ratio": "data_ratio",
    "experiment.name": "note",
}
# What the study fine-tunes with beside what its files say: Adam at a constant rate on whole images
# in colour. Its transforms were not published.
STUDY_TUNED: dict[str, object] = {
    "window": "dtype",
    "color": "rgb",
    "in_channels": 3,
    "encoder": "resnet50",
    "decoder": "unet",
    "finetune_dataset": "datasets/oxford-pets",
    "input_size": 224,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0.0,
    "clip": 0.0,
    "ema": 0.0,
    "rare_class_p": 0.0,
    "d4": "none",
    "brightness": 0.0,
    "contrast": 0.0,
    "gamma": 0.0,
    "blur_p": 0.0,
    "noise_p": 0.0,
}
# Where it is run without a file, by --pretrained_model.
STUDY_COMMAND: dict[str, object] = {
    "batch_size": 32,
    "lr": 1e-4,
    "epochs": 60,
    "loss": "bce",
    "data_ratio": 0.8,
    "crop_size": 224,
}
# SimCLR's full colour distortion changes brightness and contrast by up to 0.8; the study's README
# calls it simclr_strong.
FULL_DISTORTION = 0.8
STRONG = "simclr_strong"
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


def read(path: str, finetune: bool, own: Container[str] = ()) -> dict[str, object]:
    """Return the settings in a ``--config`` file, which may be one of another code.

    Args:
        path: YAML or JSON.
        finetune: whether it is for train_finetune.py, else for train_ssl.py.
        own: names of the flags of the command.

    Raises:
        UserError: it cannot be read, mixes the settings of two codes, or says what has no
            counterpart.
    """
    content = read_settings(Path(path))
    owner = owner_of(content, own, path)
    if owner == unet_compare.CODE and not finetune:
        raise UserError(
            f"{path} is a file of {owner}, which trains with masks alone: python train_finetune.py "
            f"--config {path}"
        )
    if owner == unet_compare.CODE:
        return unet_compare.training(content, path)
    return simclr_study(content, finetune, path)[0] if owner == STUDY_CODE else content


def read_evaluation(path: str, own: Container[str]) -> dict[str, object]:
    """Return the settings in a ``--config`` file of eval_model.py; see :func:`read`.

    Args:
        path: YAML or JSON.
        own: names of the flags of the command.

    Raises:
        UserError: see :func:`read`.
    """
    content = read_settings(Path(path))
    owner = owner_of(content, own, path)
    if owner == STUDY_CODE:
        raise UserError(f"{path} is a file of {owner}, which says nothing of an evaluation")
    return unet_compare.inference(content, path) if owner == unet_compare.CODE else content


def owner_of(content: Mapping[str, object], own: Container[str], source: str) -> str:
    """Return the code that a settings file is written for, "" where it is this one.

    Args:
        content: of the file.
        own: names of the flags of the command.
        source: named in errors.

    Raises:
        UserError: it has settings of two codes.
    """
    parts = STUDY_PARTS if is_simclr_study(content) else ()
    theirs = [key for key in content if key in KEYS and key not in own]
    ours = [key for key in content if key in own and key not in KEYS and key not in parts]
    found = {STUDY_CODE: list(parts), unet_compare.CODE: theirs, "this toolkit": ours}
    owners = {code: keys for code, keys in found.items() if keys}
    if len(owners) > 1:
        told = " with those of ".join(f"{c} ({', '.join(k[:3])})" for c, k in owners.items())
        raise UserError(f"{source} mixes settings of {told}; write it for one of them")
    return next((code for code in owners if code != "this toolkit"), "")


def notes(path: str | None, finetune: bool, own: Container[str] = ()) -> list[str]:
    """Return what to tell of a ``--config`` file of another code; nothing of ours.

    Args:
        path: of the file, None without one.
        finetune: whether it is for train_finetune.py.
        own: names of the flags of the command.
    """
    content = read_settings(Path(path)) if path else {}
    study = is_simclr_study(content)
    if finetune and not study and owner_of(content, own, str(path)) == unet_compare.CODE:
        return unet_compare.notes(content, str(path))
    if not study:
        return []
    told = [f"{path} is read as a file of the SimCLR study"]
    unused = simclr_study(content, finetune, str(path))[1]
    if "data.test_ratio" in unused:
        unused.remove("data.test_ratio")
        told.append(
            "data.test_ratio cuts nothing: the test images are those of the folder, a fifth where "
            "it names none"
        )
    if unused:
        told.append(f"without counterpart here: {', '.join(unused)}")
    return told


def unet_compare_config(path: str | None, own: Container[str]) -> dict[str, Any] | None:
    """Return all settings of a ``--config`` file of unet-compare; None where it is no such file.

    Args:
        path: of the file, None without one; it may be gone.
        own: names of the flags of the command.
    """
    content = read_settings(Path(path)) if path and Path(path).is_file() else {}
    theirs = owner_of(content, own, str(path)) == unet_compare.CODE
    return read_keys(content, str(path)) if theirs else None


def check_absent(root: Path, may_exist: bool) -> None:
    """Refuse a folder of results that is there.

    Args:
        root: ``--results_dir``.
        may_exist: whether the run in it goes on or is replaced.

    Raises:
        UserError: it exists.
    """
    try:
        exists = root.exists()
    except OSError as error:
        raise UserError(f"cannot write to {root}: {error.strerror or error}") from error
    if exists and not may_exist:
        raise UserError(
            f"{root} exists already; name another --results_dir (results_dir in a file of "
            "unet-compare), or --overwrite to replace it"
        )


def is_simclr_study(content: Mapping[str, object]) -> bool:
    """Whether a YAML file has the parts of the SimCLR study's instead of lines of ours."""
    return all(isinstance(content.get(part), Mapping) for part in STUDY_PARTS[:3])


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
    pairs = dict(_flat(content))
    values: dict[str, Any] = {table[key]: value for key, value in pairs.items() if key in table}
    unused = [key for key in pairs if key not in table]
    name = "finetune_dataset" if finetune else "data_path"
    if name in values:
        values[name] = f"datasets/{STUDY_DATA.get(values[name], values[name])}"
    optimizer = str(pairs.get("training.optimizer", "Adam" if finetune else "LARS"))
    known = ("Adam",) if finetune else ("LARS", "Adam")
    if optimizer.lower() not in [word.lower() for word in known]:
        raise UserError(
            f"{source}: training.optimizer must be {' or '.join(known)}, not {optimizer}"
        )
    if finetune:
        values = STUDY_TUNED | values
        values["loss"] = str(values.get("loss", "BCE")).lower()
        values["crop_size"] = values["input_size"]
        values["freeze_encoder_steps"] = FOR_EVER if values.get("freeze_encoder_steps") else 0
        fraction, used = _validation(pairs, source)
        if fraction is not None:
            values["val_fraction"] = fraction
        unused = [key for key in unused if key not in (*used, "training.optimizer")]
        return values, unused
    values |= {"recipe": "paper", "model": "simclr", "lr_scaling": "none"}
    # Colour stays colour; hue, saturation and the gray switch are left out.
    values |= {"color": "rgb", "in_channels": 3}
    values["optimizer"] = "lars" if optimizer.lower() == "lars" else "adamw"
    if pairs.get("data.augmentations") == STRONG:
        values["contrast"] = 1.0
        unused.remove("data.augmentations")
    if "contrast" in values:
        strength = FULL_DISTORTION * _number(pairs, source, values["contrast"])
        values |= {"contrast": strength, "brightness": strength}
    if isinstance(values.get("blur_sigma"), list):
        values["blur_sigma"] = max(_number(pairs, source, v) for v in values["blur_sigma"])
    return values, unused


def study_backbones(path: str | None) -> tuple[Path, ...]:
    """Return where the study's pretraining leaves its trunk; nothing for other ``--config`` files.

    Args:
        path: of the file, None without one.
    """
    # A run may outlive the file it was started with.
    content = read_settings(Path(path)) if path and Path(path).is_file() else {}
    if not is_simclr_study(content):
        return ()
    pairs = dict(_flat(content))
    data = str(pairs.get("data.dataset", "study"))
    names = STUDY_NAMES.get(data, (Path(data).name,))
    folder = Path(str(pairs.get("experiment.save_dir", Path(STUDY_WEIGHTS).parent)))
    return tuple(folder / Path(STUDY_WEIGHTS.format(name)).name for name in names)


def _validation(pairs: Mapping[str, object], source: str) -> tuple[float | None, tuple[str, ...]]:
    """Return the share of the training images that validates, and the keys that say so.

    Raises:
        UserError: shares that are none.
    """
    both = pairs.get("data.split_ratios")
    if both is not None:
        keys: tuple[str, ...] = ("data.split_ratios",)
        shares = both if isinstance(both, list) else [both]
    else:
        keys = ("data.train_ratio", "data.val_ratio")
        if not all(key in pairs for key in keys):
            return None, ()
        shares = [pairs[key] for key in keys]
    numbers = [_number(pairs, source, share) for share in shares]
    if len(numbers) != 2 or min(numbers) < 0 or sum(numbers) <= 0:
        raise UserError(f"{source}: {' and '.join(keys)} must hold the shares of train and val")
    return numbers[1] / sum(numbers), keys


def _number(pairs: Mapping[str, object], source: str, value: object) -> float:
    """Return a number of a file, in which 1e-4 may be text.

    Raises:
        UserError: it is none.
    """
    try:
        return float(str(value))
    except ValueError as error:
        key = next((key for key, other in pairs.items() if other is value), "a value")
        raise UserError(f"{source}: {key} must be a number, not {str(value)[:40]}") from error


def _flat(content: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
