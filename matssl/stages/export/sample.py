"""The picture that goes along with a packed model, and whether a computer predicts it as ours did.

Nothing here imports torch: it is what the other computer runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.damage import Damaged, file_hash
from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_bytes
from matssl.data import readers, synthetic
from matssl.data.preprocess import Preprocess
from matssl.trained.segmenter import Segmenter

# Files of a pack beside the recipe and its networks.
EXPECTED, SUMS, WHEELS = "expected.png", "SHA256SUMS", "wheels.txt"
STEM = "sample"
# Rows, without those of a bar that is cut off, and columns.
SHAPE = (320, 480)
# Share of labels that may differ: processors round sums in their own order.
LIMIT = 1e-4


class Checked(NamedTuple):
    """What a check found: files that are as they were, labels that differ, labels in all."""

    files: int
    changed: int
    labels: int


def write(record: Preprocess, folder: Path) -> Path:
    """Write the sample, of a sequence every frame, and return the file that is predicted.

    Args:
        record: of the model.
        folder: to write to.
    """
    bar = 0 if record.crop_bottom == "auto" else int(record.crop_bottom)
    shape = SHAPE[0] + bar, SHAPE[1]
    many = 3 if record.color == "rgb" else record.depth
    levels = [_levels(record, *shape, seed=seed) for seed in range(many)]
    paths = [folder / f"{STEM}.png"]
    if record.depth > 1:
        paths = [folder / f"{STEM}-{number:03d}.png" for number in range(1, many + 1)]
    pictures = [np.stack(levels, axis=2)] if record.color == "rgb" else levels
    for path, picture in zip(paths, pictures, strict=True):
        _save(path, picture)
    return paths[len(paths) // 2]


def _levels(record: Preprocess, height: int, width: int, seed: int) -> Array:
    """Return a synthetic picture in grey levels that a model's window shows."""
    picture, _ = synthetic.micrograph("two_phase", height, width, seed=seed)
    if record.window != "fixed" or record.high <= np.iinfo(np.uint8).max:
        return picture
    scaled = record.low + (record.high - record.low) / 255 * picture.astype(np.float64)
    return np.clip(scaled, 0, np.iinfo(np.uint16).max).astype(np.uint16)


def _save(path: Path, picture: Array) -> None:
    atomic_write_bytes(path, cv2.imencode(".png", picture)[1].tobytes())


def expect(segmenter: Segmenter, folder: Path, picture: Path) -> None:
    """Write what a model says of the sample.

    Args:
        segmenter: the exported model.
        folder: to write to.
        picture: from :func:`write`.
    """
    _save(folder / EXPECTED, _predicted(segmenter, picture))


def _predicted(segmenter: Segmenter, picture: Path) -> NDArray[np.uint8]:
    record = segmenter.record
    if record.target_pixel_size is not None:
        # The sample shows nothing; it is taken at the size that the network saw.
        members = tuple(
            replace(one, record=replace(one.record, pixel_size=record.target_pixel_size))
            for one in segmenter.members
        )
        record = replace(record, pixel_size=record.target_pixel_size)
        segmenter = replace(segmenter, record=record, members=members)
    return segmenter.predict(picture).classes


def sums(folder: Path) -> None:
    """Write the check sums of all files of a folder, as sha256sum takes them."""
    lines = [f"{file_hash(folder / name)}  {name}" for name in _names(folder)]
    atomic_write_bytes(folder / SUMS, ("\n".join(lines) + "\n").encode())


def _names(folder: Path) -> list[str]:
    inside = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in inside)
    return sorted(name for name in names if name != SUMS)


def _stated(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield names and check sums of a pack.

    Raises:
        UserError: the folder is none.
    """
    path = folder / SUMS
    if not path.is_file():
        raise UserError(
            f"{folder} is no unpacked export: it has no {SUMS}; give the folder that pack.zip of "
            "matssl.tools.export_model was unpacked to"
        )
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, sign, name = line.partition("  ")
        if not sign or len(digest) != hashlib.sha256().digest_size * 2:
            raise Damaged(f"{path} is damaged: a line of it is no check sum")
        yield name, digest


def check(folder: Path) -> Checked:
    """Return what is found of an unpacked export on this computer.

    Args:
        folder: it was unpacked to.

    Raises:
        UserError: no pack, a file of it is missing or another, or the sample is not predicted as it
            was where it was packed.
    """
    stated = list(_stated(folder))
    wrong = [
        name
        for name, digest in stated
        if not (folder / name).is_file() or file_hash(folder / name) != digest
    ]
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {len(stated)} files of {folder} are missing or not as they were "
            f"packed, the first {wrong[0]}; unpack pack.zip anew"
        )
    segmenter = Segmenter.load(folder, device="cpu")
    pictures = sorted(folder.glob(f"{STEM}*.png"))
    if not pictures:
        raise Damaged(f"{folder} has no sample picture; unpack pack.zip anew")
    found = _predicted(segmenter, pictures[len(pictures) // 2])
    expected = readers.read_mask(folder / EXPECTED)
    if expected.shape != found.shape:
        raise Damaged(f"{folder / EXPECTED} is {expected.shape}, not {found.shape}")
    changed = int(np.count_nonzero(expected != found))
    if changed > LIMIT * found.size:
        raise UserError(
            f"{changed} of {found.size} labels of the sample are not those of the computer that "
            f"packed {folder}; compare the versions with {WHEELS}"
        )
    return Checked(len(stated), changed, found.size)
