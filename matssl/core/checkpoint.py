"""Checkpoints in the format ``matssl/1``: tensors and plain values, written atomically."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from matssl.core import digest, torch_file
from matssl.core.damage import Damaged
from matssl.core.errors import DiskFull, UserError
from matssl.core.run_folder import atomic_path
from matssl.core.wording import cut

FORMAT = "matssl/1"
KEYS = (
    "format",
    digest.ENTRY,
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
# What a run goes on from, and the one before it, for the case that the last is torn.
LAST, PREVIOUS = "last.ckpt", "last.prev.ckpt"


def save(path: Path, payload: Mapping[str, object], keep: str | None = None) -> None:
    """Write a checkpoint; ``format`` is added, and the digest of its tensors.

    The file at ``path`` is replaced only when the new one is whole.

    Args:
        path: of the file.
        payload: its content.
        keep: name that the file which was at ``path`` has from then on; None drops it.

    Raises:
        UserError: the disk is full, or weights or statistics are not finite.
        ValueError: the payload has keys that the format does not know.
    """
    # One checkpoint may carry more for its own stage; it travels in "state".
    unknown = set(payload) - set(KEYS)
    if unknown:
        raise ValueError(f"checkpoint keys not in the format: {sorted(unknown)}")
    broken = digest.not_finite(payload)
    if broken:
        raise UserError(
            f"{path} was not written: numbers are not finite in {len(broken)} tensors (first: "
            f"{broken[0]}): the training diverged; lower --lr. The file before it is intact"
        )
    with atomic_path(path) as temporary:
        own = {"format": FORMAT, digest.ENTRY: digest.of_tensors(payload)}
        store({**payload, **own}, temporary, path)
        if keep is not None and path.is_file():
            _keep(path, path.with_name(keep))


def store(content: object, temporary: Path, path: Path) -> None:
    """Write a file of torch.

    Args:
        content: tensors and plain values.
        temporary: where it is written; see :func:`matssl.core.run_folder.atomic_path`.
        path: named in errors.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        torch.save(content, temporary)
    except RuntimeError as error:
        # torch's zip writer reports a failed write as a RuntimeError without errno, in words of its
        # own for each place; half a file is gone by then, and the disk may have room again.
        told = cut(str(error).strip().split("\n")[0], 80)
        raise DiskFull(
            f"the disk is full: {path} could not be written ({told}); free some space and run "
            "again with --resume (the previous checkpoint is intact)"
        ) from error


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
        raise Damaged(
            f"{path} is no checkpoint of matssl; give the last.ckpt or best.ckpt of a run folder"
        )
    found = payload["format"]
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, this version reads {FORMAT}; update matssl")
    if stage is not None and payload.get("stage") != stage:
        raise UserError(
            f"{path} comes from the stage {payload.get('stage')!r}, needed is one of {stage!r}"
        )
    return {name: value for name, value in payload.items() if name != digest.ENTRY}


def is_own(payload: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether what a torch file held is a checkpoint of matssl, of whatever version."""
    found = payload.get("format") if isinstance(payload, Mapping) else None
    return isinstance(found, str) and found.startswith("matssl/")


def read_tensors(path: Path | str) -> object:
    """Return what a torch file holds, on the CPU, without running any code in it.

    Raises:
        UserError: missing, truncated, no torch file, or a pickle that wants to run code.
    """
    return verified(torch_file.read(path), Path(path))


def verified(payload: object, path: Path) -> object:
    """Return what a torch file held; a checkpoint of ours only where it is what was written.

    Raises:
        Damaged: its records or tensors are not.
    """
    if is_own(payload):
        try:
            with zipfile.ZipFile(path) as archive:
                # zipfile compares the check sum of what it reads, torch does not.
                for name in archive.namelist():
                    if name.endswith("/data.pkl"):
                        archive.read(name)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise Damaged(f"{path} is damaged: its records are not those written") from error
        parts = {name: value for name, value in payload.items() if name != digest.ENTRY}
        digest.check(parts, payload.get(digest.ENTRY), path)
    return payload


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


def _keep(path: Path, other: Path) -> None:
    """Give a file a second name, which replaces another file's at once."""
    new = path.with_name(f".{other.name}.{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        os.link(path, new)
        new.replace(other)
    except OSError:
        # No second names on this file system: the first is given up a moment before it is taken.
        path.replace(other)
    finally:
        new.unlink(missing_ok=True)
