"""Checkpoints in the format ``matssl/1``: tensors and plain values, written atomically."""

from __future__ import annotations

import errno
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from matssl.core import torch_file
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_path

FORMAT = "matssl/1"
KEYS = (
    "format",
    "stage",
    "method",
    "model",
    "state",
    "optimizer",
    "step",
    "recipe",
    "preprocess",
    "classes",
    "lineage",
    "progress",
)


def save(path: Path, payload: Mapping[str, object]) -> None:
    """Write a checkpoint; ``format`` is added. The file at ``path`` is replaced only when whole.

    Raises:
        UserError: the disk is full.
        ValueError: the payload has keys that the format does not know.
    """
    # One checkpoint may carry more for its own stage; it travels in "state".
    unknown = set(payload) - set(KEYS)
    if unknown:
        raise ValueError(f"checkpoint keys not in the format: {sorted(unknown)}")
    try:
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, **payload}, temporary)
    except RuntimeError as error:
        # torch's zip writer reports a failed write as a RuntimeError without errno.
        if "write failed" in str(error) or "No space" in str(error) or _is_full(path):
            raise UserError(
                f"the disk is full: {path} could not be written; free some space and run again "
                "with --resume (the previous checkpoint is intact)"
            ) from error
        raise


def load(path: Path | str, *, stage: str | None = None) -> dict[str, Any]:
    """Return the payload of a checkpoint, tensors on the CPU.

    Args:
        path: the file.
        stage: ``ssl`` or ``finetune``; another stage's checkpoint is refused.

    Raises:
        UserError: missing, truncated, not a checkpoint of matssl, from a newer format, of another
            stage, or a pickle that wants to run code.
    """
    return checked(read_tensors(path), path, stage=stage)


def checked(payload: object, path: Path | str, *, stage: str | None = None) -> dict[str, Any]:
    """Return what a torch file held, where it is a checkpoint that can be used.

    Args:
        payload: as :func:`read_tensors` gave it.
        path: named in errors.
        stage: see :func:`load`.

    Raises:
        UserError: see :func:`load`.
    """
    if not is_own(payload):
        raise UserError(
            f"{path} is no checkpoint of matssl; give the last.ckpt or best.ckpt of a run folder"
        )
    found = payload["format"]
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, this version reads {FORMAT}; update matssl")
    if stage is not None and payload.get("stage") != stage:
        raise UserError(
            f"{path} comes from the stage {payload.get('stage')!r}, needed is one of {stage!r}"
        )
    return dict(payload)


def is_own(payload: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether what a torch file held is a checkpoint of matssl, of whatever version."""
    found = payload.get("format") if isinstance(payload, Mapping) else None
    return isinstance(found, str) and found.startswith("matssl/")


def read_tensors(path: Path | str) -> object:
    """Return what a torch file holds, on the CPU, without running any code in it.

    Raises:
        UserError: missing, truncated, no torch file, or a pickle that wants to run code.
    """
    return torch_file.read(path)


class _ArraysOnly(pickle.Unpickler):
    """Builds arrays and plain containers and refuses everything else."""

    ALLOWED = {
        ("collections", "OrderedDict"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise UserError(
                f"it is a pickle that wants to run code ({module}.{name}) and is not opened"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_arrays(path: Path | str) -> object:
    """Return what a pickle of numpy arrays holds, as tensors, without running any code in it.

    Raises:
        UserError: damaged, or it holds more than arrays and plain values.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _as_tensors(_ArraysOnly(file, encoding="latin1").load())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        # A damaged pickle can fail with nearly any exception.
        raise UserError(f"{path} is no pickle of arrays or is damaged; fetch it again") from error


def _as_tensors(content: object) -> object:
    if isinstance(content, Mapping):
        return {key: _as_tensors(value) for key, value in content.items()}
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        return torch.from_numpy(np.ascontiguousarray(content))
    return content


def file_hash(path: Path | str) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_full(path: Path) -> bool:
    import shutil

    try:
        return shutil.disk_usage(path.parent).free < 1 << 20
    except OSError as error:
        return error.errno == errno.ENOSPC
