"""The pictures of a folder as they will be used, on one page: cut, mask and specimen of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.paths import misplaced
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.facts import Facts
from matssl.data.layouts import Dataset, Pair
from matssl.data.levels import shrunk
from matssl.data.preprocess import Preprocess
from matssl.pictures import contact
from matssl.pictures.contact import Cell
from matssl.preflight import Preflight

# Longest side of what a thumbnail is made of.
LONGEST = 1536
# Where nobody cut splits.
UNSPLIT = ("predict", "pool", "images")


def write(found: Preflight, path: Path) -> str:
    """Write the contact sheet of what was examined; return what it shows, in words.

    Args:
        found: with the record that reads the pictures.
        path: PNG file.

    Raises:
        UserError: it cannot be written.
    """
    chosen = _chosen(found)
    pairs = {} if found.dataset is None else {pair.image: pair for pair in found.dataset.pairs}
    cells = [_cell(fact, found, pairs.get(fact.path)) for fact in chosen]
    total = len(found.facts)
    told = counted(total, "picture")
    if len(chosen) < total:
        told = (
            f"{len(chosen)} of {told}: all that need a look, the others evenly chosen; "
            f"{total - len(chosen)} left out"
        )
    warnings = "".join(f". {warning.split(':')[0]}" for warning in found.judged.warnings[:3])
    save(cells, path, Path(found.title).name or found.title, told + warnings)
    return told


def save(cells: Sequence[Cell], path: Path, title: str, text: str, marks: str = "") -> None:
    """Write a contact sheet; see :func:`matssl.pictures.contact.sheet`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        contact.sheet(cells, path, title, text, marks)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; --pictures") from error


def check_path(path: Path, folder: Path) -> None:
    """Refuse a place for a contact sheet where it cannot be, or would be read as a micrograph.

    Raises:
        UserError: no PNG file, no such folder, or inside the folder of the images.
    """
    inside = " and would be read as one of them"
    told = misplaced("--pictures", path, folder, ".png", "a PNG file", inside)
    if told:
        raise UserError(told)


def gray(plane: Array, kept: int) -> NDArray[np.uint8]:
    """Return a picture for the eye, at most ``LONGEST`` pixels a side.

    Args:
        plane: (H, W) or (H, W, 3) as a file holds it.
        kept: rows whose grey levels become black and white.
    """
    small = shrunk(plane, LONGEST).astype(np.float32)
    upper = small[: max(1, round(len(small) * kept / len(plane)))]
    low, high = np.percentile(upper, [0.5, 99.5])
    scaled = (small - low) / max(float(high - low), 1e-6)
    return np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)


def _chosen(found: Preflight) -> list[Facts]:
    """Return the files that are shown: those that need a look, and others evenly spread."""
    facts = list(found.facts)
    if len(facts) <= contact.MOST:
        return facts
    out = {*found.judged.doubtful, *found.outliers}
    doubtful = [f.path for f in facts if f.error or f.path in out]
    first = set(doubtful[: contact.MOST // 2])
    others = [f.path for f in facts if f.path not in first]
    places = np.linspace(0, len(others) - 1, contact.MOST - len(first)).round().astype(int)
    shown = first | {others[place] for place in places}
    return [fact for fact in facts if fact.path in shown]


def _cell(fact: Facts, found: Preflight, pair: Pair | None) -> Cell:
    title = fact.path.name if pair is None else pair.group
    misfits = found.judged.misfits
    text = fact.path.name if fact.split in UNSPLIT else f"{fact.split}: {fact.path.name}"
    if fact.error:
        return Cell(None, title, text, wrong="cannot be read")
    micrograph = found.record.frame(fact.path)
    rows = micrograph.pixels.shape[0]
    kept = found.record.kept_rows(micrograph)
    image = gray(micrograph.pixels, kept)
    wrong = misfits.get(fact.path, "")
    if not wrong and fact.path in found.judged.doubtful:
        having = "a bar is" if kept < rows else "no bar is"
        wrong = f"{having} found, unlike in others of its size"
    if not wrong:
        wrong = "; ".join(one.text for one in found.outliers.get(fact.path, ()))
    labels = None
    if pair is not None and pair.mask is not None and fact.path not in misfits:
        labels = _labels(pair, found.dataset, found.record, micrograph, image.shape)
    bar = counted(rows - kept, "row")
    return Cell(image, title, text, kept / rows, f"{bar} cut", labels, (), wrong)


def _labels(
    pair: Pair,
    dataset: Dataset | None,
    record: Preprocess,
    micrograph: readers.Micrograph,
    shape: tuple[int, ...],
) -> NDArray[np.uint8] | None:
    """Return the classes above the bar at the size of the small picture, None without a mask."""
    if dataset is None or dataset.table is None or pair.mask is None:
        return None
    try:
        mask = dataset.table.decode(readers.read_mask(pair.mask), str(pair.mask))
        mask = record.fitted(mask, micrograph)
    except UserError:
        # What is wrong with it stands on the screen.
        return None
    height = max(1, round(shape[0] * len(mask) / micrograph.pixels.shape[0]))
    small = cv2.resize(mask, (shape[1], height), interpolation=cv2.INTER_NEAREST_EXACT)
    return small.astype(np.uint8)
