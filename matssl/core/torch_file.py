"""Files of torch.save as data: tensors, numbers, names. No code in them is run.

torch reads tensors, plain values and ordered dictionaries by itself. What else trainers put beside
them is known here by name and becomes plain values by functions of this module: numpy's own, or
those of the classes named, are never called. All other names are refused.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from matssl.core import file_kinds
from matssl.core.damage import Damaged
from matssl.core.errors import UserError

# Kinds of numbers that are read: truth values, whole and real numbers, text.
KINDS = re.compile(r"[?biufSU]\d{0,4}")


def read(path: Path | str) -> object:
    """Return what a torch file holds, tensors on the CPU.

    Raises:
        UserError: missing, truncated, another kind of file (which is named), or one that wants to
            run code.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        kind = file_kinds.named(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if kind is not None:
        raise Damaged(f"{path} is no weights file: it is {kind}")
    try:
        with torch.serialization.safe_globals(list(_STANDINS)), warnings.catch_warnings():
            # Old files are read as well as new ones.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Bytes that only look like a file of torch fail with nearly any exception.
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> UserError:
    said = str(error)
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in said:
        return UserError(
            f"{path} is a pickle that wants to run code ({_wanted(said)}) and is not opened; its "
            f"author can write one of tensors alone: {file_kinds.SAVE}"
        )
    return Damaged(
        f"{path} is truncated, damaged or no weights file ({path.stat().st_size} bytes); fetch it "
        "again"
    )


def _wanted(message: str) -> str:
    words = message.replace("`", " ").replace(",", " ").split()
    names = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"]
    return names[0][:80] if names else "unknown function"


class Attributes(dict[str, Any]):
    """Attributes of an object whose class is not made: argparse.Namespace and the like."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


class _Kind:
    """Stands for numpy.dtype: the kind and size of a number, and its byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if len(state) > 1 and state[1] == ">":
            self.order = ">"

    def dtype(self) -> np.dtype[Any]:
        """Return numpy's own.

        Raises:
            ValueError: no plain number or text.
        """
        if not isinstance(self.name, str) or not KINDS.fullmatch(self.name):
            raise ValueError(f"arrays of {self.name!r} are not read")
        return np.dtype(self.order + self.name)


class _Array(np.ndarray[Any, Any]):
    """An array that is filled from bytes of exactly its size, and from nothing else."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        dtype = kind.dtype()
        if not isinstance(data, bytes) or len(data) != dtype.itemsize * math.prod(shape):
            raise ValueError("an array and its bytes differ in size")
        state = (1, shape, dtype, bool(fortran), data)
        super().__setstate__(state)  # type: ignore[arg-type]


def _scalar(kind: _Kind, data: bytes) -> object:
    """Stand for numpy's function: the number itself."""
    return np.frombuffer(data, kind.dtype(), 1)[0].item()


def _array(*_: object) -> _Array:
    return np.ndarray.__new__(_Array, (0,))


def _dictionary(*_: object) -> dict[object, object]:
    return {}


def _list(*_: object) -> list[object]:
    return []


def _items(items: object = ()) -> list[object]:
    return list(items) if isinstance(items, (list, tuple)) else []


def _path(*parts: object) -> str:
    return str(PurePosixPath(*map(str, parts)))


def _nothing(*_: object) -> None:
    """Stand for what is only named: the factory of a defaultdict, a date."""


_STANDINS: tuple[tuple[Callable[..., object], str], ...] = (
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for stand_in, name in ((_scalar, "scalar"), (_array, "_reconstruct"))
    ),
    (_Kind, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    *(
        (Attributes, name)
        for name in (
            *("argparse.Namespace", "types.SimpleNamespace", "easydict.EasyDict"),
            "addict.addict.Dict",
            "pytorch_lightning.utilities.parsing.AttributeDict",
            "lightning.pytorch.utilities.parsing.AttributeDict",
            "lightning_fabric.utilities.data.AttributeDict",
            "lightning.fabric.utilities.data.AttributeDict",
        )
    ),
    (_dictionary, "collections.defaultdict"),
    (_list, "collections.deque"),
    (_items, "builtins.frozenset"),
    *(
        (_path, f"pathlib.{place}{name}")
        for place in ("", "_local.")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    ),
    *((_nothing, f"builtins.{name}") for name in ("list", "dict", "int", "float", "str", "tuple")),
    *((_nothing, f"datetime.{name}") for name in ("datetime", "date", "timedelta")),
)
