"""The keys of unet-compare's settings files (JSON): types, ranges, defaults, what excludes what.

Its code is that of arXiv:2507.16779. What says two things, or would do nothing, is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from matssl.core.errors import UserError
from matssl.core.wording import cut

TRAIN, INFERENCE = "train", "inference"
BLOCKS = 7
# Its networks and starts by its names and ours.
ENCODERS = {"UNet": "classic_unet", "EfficientNetB7": "efficientnet-b7"}
DECODERS = {"UNet": "classic_unet", "UNet++": "classic_unetplusplus"}
STARTS = {"random": "none", "imagenet": "imagenet"}
MOST_TOLD = 8


class Key(NamedTuple):
    """A key of its files.

    Attributes:
        kind: of the value: bool, int, float, str, or a list of int or of str.
        default: where it is absent; None where it may be null.
        low: smallest number, of a list its numbers; one below it is refused.
        below: numbers must be smaller.
        above: numbers must be larger.
        choices: the texts it takes.
        length: numbers of a list, where there is one right one.
        modes: of operation in which it says something.
        required: whether there must be a value.
    """

    kind: str
    default: object = None
    low: float | None = None
    below: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    length: int | None = None
    modes: tuple[str, ...] = (TRAIN,)
    required: bool = False


KEYS = {
    "operation_mode": Key("text", TRAIN, choices=(TRAIN, INFERENCE), modes=(TRAIN, INFERENCE)),
    "dataset_name": Key("text", modes=(TRAIN, INFERENCE), required=True),
    "results_dir": Key("text", modes=(TRAIN, INFERENCE)),
    "encoder_name": Key("text", "UNet", choices=tuple(ENCODERS)),
    "decoder_name": Key("text", "UNet", choices=tuple(DECODERS)),
    "encoder_filters": Key("numbers", [64, 128, 256, 512, 1024], low=1, length=5),
    "decoder_filters": Key("numbers", [512, 256, 128, 64, 32], low=1),
    "batchnorm": Key("switch", False),
    "backbone_weights": Key("text", choices=tuple(STARTS)),
    "backbone_finetuning": Key("blocks", True, low=1),
    "learning_rate": Key("number", 1e-4, above=0, below=1),
    "L2_regularization_strength": Key("number", 0.0, low=0, below=1),
    "monitor_f1": Key("switch", False),
    "metric_threshold": Key("number", 0.5, above=0, below=1, modes=(TRAIN, INFERENCE)),
    "batch_size": Key("whole", 4, low=1),
    "num_epochs": Key("whole", 50, low=1),
    "augment": Key("switch", True),
    "cross_validation": Key("switch", False),
    "num_folds": Key("whole", low=2),
    "early_stopping": Key("switch"),
    "patience": Key("whole", low=1),
    "training_set": Key("names"),
    "validation_set": Key("names"),
    "auto_split": Key("number", above=0, below=1),
    "model_summary": Key("switch", True),
    "model_path": Key("text", modes=(INFERENCE,)),
}
# Names that its documentation has for keys, and words from elsewhere, with what was meant.
MEANT = {
    "l2_reg": "L2_regularization_strength",
    "l2": "L2_regularization_strength",
    "weight_decay": "L2_regularization_strength",
    "dataset_prefix": "dataset_name",
    "dataset": "dataset_name",
    "training_mode": "operation_mode",
    "mode": "operation_mode",
    "epochs": "num_epochs",
    "lr": "learning_rate",
    "folds": "num_folds",
    "k_folds": "num_folds",
    "threshold": "metric_threshold",
    "encoder": "encoder_name",
    "decoder": "decoder_name",
    "weights": "backbone_weights",
    "filters": "encoder_filters",
    "validation_split": "auto_split",
    "val_split": "auto_split",
    "output_dir": "results_dir",
    "batch_norm": "batchnorm",
}
KINDS = {
    "switch": "true or false",
    "whole": "a whole number",
    "number": "a number",
    "text": "text",
    "numbers": "a list of whole numbers",
    "names": "a list of file names",
    "blocks": f"true, false or a list of different numbers from 1 to {BLOCKS}",
}


def read(content: Mapping[str, object], source: str) -> dict[str, Any]:
    """Return all its settings, with defaults for those the file leaves out.

    Args:
        content: of the file.
        source: named in errors.

    Raises:
        UserError: unknown keys, values of another type or out of range, keys that do not go
            together; all are told.
    """
    wrong = [_unknown(key) for key in content if key not in KEYS]
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        value = content.get(name, key.default)
        told = _problem(name, key, value) if name in content else ""
        wrong += [told] if told else []
        values[name] = key.default if told else value
    bad = {name for name in KEYS if name in content and _problem(name, KEYS[name], content[name])}
    wrong += [told for told, about in _crossed(values) if not bad & set(about)]
    if wrong:
        more = f"; and {len(wrong) - MOST_TOLD} more" if len(wrong) > MOST_TOLD else ""
        raise UserError(f"{source}: {'; '.join(wrong[:MOST_TOLD])}{more}")
    return values


def _unknown(key: object) -> str:
    """Return what is wrong with a key that is none, with the one that was meant."""
    word = str(key)
    lower = {name.lower(): name for name in KEYS}
    meant = MEANT.get(word.lower())
    if meant is None:
        close = difflib.get_close_matches(word.lower(), list(lower), n=1, cutoff=0.5)
        meant = lower[close[0]] if close else None
    hint = f"; did you mean {meant}?" if meant else f"; there are: {', '.join(KEYS)}"
    return f"unknown key {cut(repr(word), 60)}{hint}"


def _problem(name: str, key: Key, value: object) -> str:
    """Return what is wrong with the value of a key, "" where nothing is."""
    if value is None:
        return f"{name} must not be null" if key.default is not None or key.required else ""
    if not _CHECKS[key.kind](value):
        return f"{name} must be {KINDS[key.kind]}, not {cut(repr(value), 60)}"
    if key.choices and value not in key.choices:
        return f"{name} must be {' or '.join(key.choices)}, not {cut(str(value), 60)}"
    if isinstance(value, list) and key.length not in (None, len(value)):
        return f"{name} must be {key.length} numbers, not {len(value)}"
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if key.low is not None and number < key.low:
            return f"{name} must be at least {key.low:g}, not {number}"
        if key.above is not None and not number > key.above:
            return f"{name} must be above {key.above:g}, not {number}"
        if key.below is not None and not number < key.below:
            return f"{name} must be below {key.below:g}, not {number}"
    return ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 2**31


def _is_list(value: object, kind: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(map(kind, value))


def _are_blocks(value: object) -> bool:
    if isinstance(value, bool):
        return True
    numbers = value if isinstance(value, list) and _is_list(value, _is_whole) else []
    return bool(numbers) and len(set(numbers)) == len(numbers) and max(numbers) <= BLOCKS


_CHECKS: dict[str, Callable[[object], bool]] = {
    "switch": lambda value: isinstance(value, bool),
    "whole": _is_whole,
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str) and bool(value.strip()),
    "numbers": lambda value: _is_list(value, _is_whole),
    "names": lambda value: _is_list(value, lambda name: isinstance(name, str) and bool(name)),
    "blocks": _are_blocks,
}


def _crossed(values: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what does not go together, each with the keys it is about."""
    wrong: list[tuple[str, tuple[str, ...]]] = []

    def refuse(when: object, told: str, *about: str) -> None:
        if when:
            wrong.append((told, about))

    name = values["dataset_name"]
    refuse(name is None, "dataset_name is missing, the folder below data/", "dataset_name")
    refuse(name and len(name) < 2, "dataset_name needs two characters or more", "dataset_name")
    if values["operation_mode"] == INFERENCE:
        path = values["model_path"]
        refuse(path is None, "model_path is missing, the best.ckpt of a training", "model_path")
        refuse(
            str(path).lower().endswith((".keras", ".h5")),
            f"model_path {path} is a Keras model, which only Keras can build; train it again with "
            "train_finetune.py and this configuration in operation_mode train, and give its "
            "best.ckpt",
            "model_path",
        )
        return wrong
    wrong += _crossed_plans(values)
    own = values["encoder_name"] == "UNet"
    refuse(
        not own and values["backbone_weights"] is None,
        "backbone_weights must be random or imagenet with encoder_name EfficientNetB7",
        *("backbone_weights", "encoder_name"),
    )
    steps, given = (4 if own else 5), len(values["decoder_filters"])
    refuse(
        not steps <= given <= 5,
        f"decoder_filters must be {'4 or 5' if own else '5'} numbers with encoder_name "
        f"{values['encoder_name']}, the deepest first, not {given}",
        *("decoder_filters", "encoder_name"),
    )
    return wrong


def _crossed_plans(values: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """Return what does not go together in stopping, folds and lists of images."""
    stops, folds = values["early_stopping"], values["cross_validation"]
    train, held = values["training_set"] or [], values["validation_set"] or []
    both = sorted(set(train) & set(held))
    stopping, cutting = ("early_stopping", "patience"), ("cross_validation", "num_folds")
    lists = ("training_set", "validation_set", "auto_split")
    checks = (
        (
            stops and values["patience"] is None,
            "early_stopping needs patience, in epochs",
            stopping,
        ),
        (
            values["patience"] is not None and not stops,
            "patience acts with early_stopping true alone",
            stopping,
        ),
        (
            stops and folds,
            "early_stopping and cross_validation exclude each other: the folds would stop at "
            "different epochs",
            (*stopping, *cutting),
        ),
        (folds and values["num_folds"] is None, "cross_validation needs num_folds", cutting),
        (
            values["num_folds"] is not None and not folds,
            "num_folds acts with cross_validation true alone",
            cutting,
        ),
        (
            folds and (held or values["auto_split"] is not None),
            "validation_set and auto_split do not go with cross_validation, whose folds validate",
            (*cutting, *lists),
        ),
        (
            held and values["auto_split"] is not None,
            "validation_set and auto_split both say what validates; give one of them",
            lists,
        ),
        (both, f"training_set and validation_set both name {cut(', '.join(both), 60)}", lists),
    )
    return [(told, about) for when, told, about in checks if when]
