"""Regions of interest: what counts of each field (``--roi``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.tables import Row
from matssl.core.wording import counted
from matssl.data import readers
from matssl.measure.field import Masked, areas
from matssl.stages.measure import pairs
from matssl.stages.measure.inputs import Source


def within(folder: str, source: Source) -> Source:
    """Return the masks with what lies outside of their regions counting nowhere.

    A region is a picture of the name of the micrograph or of its mask; pixels at 0 are outside.
    Fields without one count whole, which is said.

    Args:
        folder: of the regions.
        source: of the masks.

    Raises:
        UserError: no region has the name of a field, or one has several pages.
    """
    files = pairs.by_stem(Path(folder), "--roi")
    images = source.images or source.files
    # The region of a stack is that of all its pages.
    called = [
        (image.stem, path.stem, readers.file_of(image).stem, readers.file_of(path).stem)
        for image, path in zip(images, source.files, strict=True)
    ]
    names = {stem for stems in called for stem in stems}
    used = [stem for stem in files if stem in names]
    if not used:
        raise UserError(
            f"--roi: no picture in {folder} has the name of a field (first: "
            f"{source.files[0].name}, {next(iter(files.values())).name} there)"
        )
    one_each = "give one region for all of a stack, or a file for each: {name}-0003.png of page 3"
    pairs.refuse_stacks((files[stem] for stem in used), "--roi", one_each)
    known = dict.fromkeys(used)
    have = sum(any(stem in known for stem in stems) for stems in called)
    note = f"--roi: {have} of {counted(source.count, 'field')} have a region in {folder}"
    if have < source.count:
        note += "; the others count whole"
    stray = [stem for stem in files if stem not in known]
    if stray:
        note += f"; {counted(len(stray), 'region')} of no field: {', '.join(stray[:4])}"
    left: dict[str, tuple[int, int]] = {}

    def opened(number: int) -> Masked:
        one = source.open(number)
        stems = (one.field.image.stem, *called[number][1:])
        path = next((files[stem] for stem in stems if stem in files), None)
        return one if path is None else _cut(one, path, left)

    regions = tuple(files[stem] for stem in used)
    return replace(source, open=opened, notes=(*source.notes, note), regions=regions, left=left)


def rows(left: Mapping[str, tuple[int, int]]) -> list[Row]:
    """Return what is left of each field, a row a field."""
    return [
        {"image": name, "pixels": before, "pixels left": after, "share left": _share(before, after)}
        for name, (before, after) in left.items()
    ]


def text(left: Mapping[str, tuple[int, int]]) -> str:
    """Return how much is left of all fields that have a region, in words."""
    before, after = (sum(values) for values in zip(*left.values(), strict=True))
    least = min(left, key=lambda name: _share(*left[name]))
    return (
        f"--roi leaves {100 * _share(before, after):.1f} % of the pixels of "
        f"{counted(len(left), 'field')}, least of {least}: {100 * _share(*left[least]):.1f} %"
    )


def _share(before: int, after: int) -> float:
    return after / before if before else 0.0


def _cut(one: Masked, path: Path, left: dict[str, tuple[int, int]]) -> Masked:
    """Return a field without what lies outside of its region."""
    inside = _inside(path, one.mask.shape)
    before = int(one.field.areas.sum())
    mask = np.where(inside, one.mask, IGNORE).astype(np.uint8)
    own = areas(mask, len(one.field.areas))
    left[one.field.name] = (before, int(own.sum()))
    labels = None if one.labels is None else np.where(inside, one.labels, 0).astype(np.int32)
    return replace(one, field=replace(one.field, areas=own), mask=mask, labels=labels)


def _inside(path: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the region (H, W) of a field; one drawn with the information bar is cut as it was.

    Raises:
        UserError: it is of another size.
    """
    values = np.asarray(readers.read_mask(path))
    if values.ndim == 3:
        # The last of two or four channels is how opaque it is.
        values = values[..., : 1 if values.shape[2] == 2 else 3].max(axis=2)
    height, width = shape
    if values.shape[1] != width or values.shape[0] < height:
        raise UserError(
            f"--roi: {path.name} has {values.shape[1]} x {values.shape[0]} pixels, the field "
            f"{width} x {height}"
        )
    return np.asarray(values[:height] != 0)
