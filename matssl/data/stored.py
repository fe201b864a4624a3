"""What records in checkpoints may hold: a garbled one is told apart from one that was written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matssl.core.labels import IGNORE
from matssl.core.wording import cut

# Levels of a plane lie between -0.5 and 1.5, so mean and spread over images are of that order.
LEVEL = 10.0
# Pixel sizes in nm, from below an atom to a metre.
PIXEL = (1e-4, 1e9)
# Rows of an image, and the side of a resized one.
SIDE = 1 << 20
# Frames that are read as channels.
DEEPEST = 63
# 255 is no class.
CLASSES = 254


def check_preprocessing(values: Mapping[str, object]) -> None:
    """Refuse a record of preprocessing that no training has written.

    Args:
        values: as ``Preprocess.to_dict`` gives them.

    Raises:
        KeyError, TypeError, ValueError: what is wrong, in words.
    """
    _one_of("color", values["color"], ("gray", "rgb"))
    depth = _number("depth", values["depth"], 1, DEEPEST, whole=True)
    channels = _number("channels", values["channels"], 1, max(3, depth), whole=True)
    if depth % 2 == 0 or (depth > 1 and (channels != depth or values["color"] != "gray")):
        raise ValueError(f"its record reads {depth:g} frames as {channels:g} channels")
    for name in ("low", "high"):
        _number(name, values[name], -math.inf, math.inf)
    rows = values["crop_bottom"]
    if rows != "auto":
        _number("crop_bottom", rows, 0, SIDE, whole=True)
    if values["resize"] is not None:
        _number("resize", values["resize"], 1, SIDE, whole=True)
    for name in ("target_pixel_size", "pixel_size"):
        if values[name] is not None:
            _number(name, values[name], *PIXEL)
    mean, std = (_numbers(name, values[name]) for name in ("mean", "std"))
    if not len(mean) == len(std) or len(mean) not in (1, channels):
        raise ValueError(
            f"its record has {len(mean)} means and {len(std)} deviations for {channels:g} channels"
        )
    for value in mean:
        _number("mean", value, -LEVEL, LEVEL)
    for value in std:
        _number("std", value, 1e-9, LEVEL)


def check_classes(values: Mapping[str, object]) -> None:
    """Refuse a class table that no training has written.

    Args:
        values: as ``ClassTable.to_dict`` gives them.

    Raises:
        KeyError, TypeError, ValueError: what is wrong, in words.
    """
    if not isinstance(values["kind"], str):
        raise TypeError("its class table has no kind")
    classes = values["classes"]
    if not isinstance(classes, (list, tuple)) or not 1 <= len(classes) <= CLASSES:
        raise ValueError("its class table has no classes")
    names = []
    for place, entry in enumerate(classes):
        if not isinstance(entry, Mapping) or entry["index"] != place:
            raise ValueError(f"its class table has no class {place}")
        if not isinstance(entry["name"], str) or not entry["name"].strip():
            raise ValueError(f"its class {place} has no name")
        names.append(entry["name"])
        _number("pixels", entry.get("pixels", 0), 0, math.inf, whole=True)
        _number("share", entry.get("share", 0.0), 0, 1)
        if not isinstance(entry["values"], (list, tuple)):
            raise TypeError(f"its class {place} has no values")
    if not isinstance(values["ignore_values"], (list, tuple)):
        raise TypeError("its class table has no ignored values")
    if values["rest_index"] is not None:
        last = IGNORE if values["rest_index"] == IGNORE else len(classes) - 1
        _number("rest_index", values["rest_index"], 0, last, whole=True)


def _number(name: str, value: object, low: float, high: float, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(
            f"its {name} is no {'whole ' if whole else ''}number: {cut(repr(value), 40)}"
        )
    if not low <= value <= high:
        raise ValueError(f"its {name} is out of range: {cut(repr(value), 40)}")
    return value


def _numbers(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"its {name} is no list of numbers")
    return value


def _one_of(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"its {name} is none of {', '.join(choices)}: {cut(repr(value), 40)}")
