"""The pipeline of ``--augmentation``: tried at the start, drawn, kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import rng
from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.data import augmentation, crops, preprocess
from matssl.data.augmentation import Pipeline
from matssl.data.crops import Labelled
from matssl.pictures import augmentation as drawing
from matssl.stages.finetune.augmentation_settings import REPLACED
from matssl.stages.finetune.inputs import Inputs
from matssl.stages.finetune.settings import FinetuneSettings

# Of a checkpoint; files in the run folder.
KEY, RECORD, SHEET = "augmentation", "augmentation.json", "augmentation.png"
# Training images on the sheet, and draws of each.
IMAGES, DRAWS = 4, 7
# Draws of the sheet are none of the run's.
SHEET_VIEW = 1


def pipeline(settings: FinetuneSettings, images: Labelled) -> Pipeline | None:
    """Return the pipeline of the settings, tried on crops like those of the run; None without one.

    Args:
        settings: with the size of the crops.
        images: that are learned from.

    Raises:
        UserError: the file, or a transform in it, cannot be used.
    """
    file, name = settings.augmentation_file, settings.augmentation
    if file is None or name is None or settings.classifies:
        return None
    assert settings.crop_size is not None
    found = augmentation.read(Path(file), name)
    for channels in {1 if plane.ndim == 2 else plane.shape[2] for plane in images.planes}:
        found.check(settings.crop_size, channels)
    return found


def told(found: Pipeline | None) -> str:
    """Return what the pipeline does to the crops, and what is without effect; "" without one."""
    if found is None:
        return ""
    without = ", ".join(f"--{name}" for name in REPLACED)
    return f"note    --augmentation {found.name}: {found.text}; instead of {without}"


def stored(found: Pipeline | None) -> dict[str, object]:
    """Return what a continuation must agree with; nothing without a pipeline."""
    return {} if found is None else {KEY: found.record}


def refuse_other(
    before: Mapping[str, object], now: Mapping[str, object] | None, root: Path, instead: str
) -> None:
    """Refuse to go on with another pipeline than the run was started with.

    Args:
        before: what :func:`stored` gave then, among other things.
        now: the record of the pipeline of the command; None without one.
        root: of the run.
        instead: what to do for another one.

    Raises:
        UserError: they differ.
    """
    if before.get(KEY) == now:
        return
    if before.get(KEY) is None:
        raise UserError(f"{root} was begun without --augmentation; leave it out, or {instead}")
    kept = root / RECORD if (root / RECORD).is_file() else "the file as it was"
    raise UserError(
        f"--augmentation is not the pipeline that {root} was begun with; give {kept}, or {instead}"
    )


def begin(folder: RunFolder, inputs: Inputs, side: int, seed: int) -> None:
    """Write the pipeline and a sheet of what it does to a few training images; nothing without one.

    Args:
        folder: of the run.
        inputs: of the run, with the pipeline.
        side: of its crops, in pixels.
        seed: of the run.
    """
    found = inputs.pipeline
    if found is None:
        return
    folder.write_json(RECORD, found.record)
    if folder.writer:
        rows = sheet(found, inputs.train, side, seed)
        drawing.sheet(rows, folder.path(SHEET), f"Crops by --augmentation {found.name}")


def sheet(found: Pipeline, images: Labelled, side: int, seed: int) -> list[drawing.Row]:
    """Return crops of the first images, each as it is and as the pipeline changes it.

    The crop is the one with the longest outlines of classes.

    Args:
        found: the pipeline.
        images: that are learned from.
        side: of a crop, in pixels.
        seed: of the draws.
    """
    rows = []
    parts = zip(images.planes, images.masks, images.pairs, strict=True)
    for number, (plane, mask, pair) in enumerate(parts):
        if number == IMAGES:
            break
        crop, labels = crops.cut(plane, mask, *_busiest(mask, side), side)
        levels = augmentation.levels(plane)
        cells = [(_shown(crop, levels), labels)]
        for draw in range(DRAWS):
            generator = rng.generator(seed, draw, number, view=SHEET_VIEW, stream=rng.CROPS)
            changed, changed_labels = found(crop, labels, generator, levels)
            cells.append((_shown(changed, levels), changed_labels))
        rows.append(drawing.Row(pair.image.name, tuple(cells)))
    return rows


def _busiest(mask: NDArray[np.uint8], side: int) -> tuple[int, int]:
    """Return top and left of the square in which classes meet most, of those inside the mask."""
    meets = np.zeros(mask.shape, np.float32)
    known = mask != IGNORE
    meets[:-1] += (mask[:-1] != mask[1:]) & known[:-1] & known[1:]
    meets[:, :-1] += (mask[:, :-1] != mask[:, 1:]) & known[:, :-1] & known[:, 1:]
    rows, columns = (max(1, size - side + 1) for size in mask.shape)
    # Sums over squares that begin at each pixel.
    sums = cv2.boxFilter(
        meets, -1, (side, side), anchor=(0, 0), normalize=False, borderType=cv2.BORDER_CONSTANT
    )[:rows, :columns]
    top, left = divmod(int(np.argmax(sums)), columns)
    return top, left


def section(root: Path, settings: FinetuneSettings) -> list[tuple[str, str]]:
    """Return the part of a report on it, nothing without a pipeline."""
    if settings.augmentation is None or not (root / SHEET).is_file():
        return []
    said = f"--augmentation {settings.augmentation}; the pipeline as it was used: {RECORD}"
    return [("Augmentation", report.picture(root / SHEET) + report.note(said))]


def _shown(plane: Array, levels: tuple[float, float]) -> Array:
    low, high = levels
    return preprocess.quantise((plane - np.float32(low)) * np.float32(1 / (high - low)))
