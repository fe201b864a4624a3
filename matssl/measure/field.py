"""A field: one image of a specimen, the area of each class on it, and its mask."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, histogram

Item = TypeVar("Item")


@dataclass(frozen=True)
class Field:
    """What one image gave.

    Attributes:
        image: its file.
        name: of its output files.
        specimen: which it shows; images of one specimen are no independent samples.
        areas: pixels of each class, int64 (C,); those that belong to no class count nowhere.
        pixel_size: nm, None where unknown.
        sequence: that it is a frame or page of, "" for none; frames of one sequence are no
            independent samples of their specimen either (:func:`together`).
        frame: its number there.
    """

    image: Path
    name: str
    specimen: str
    areas: NDArray[np.int64]
    pixel_size: float | None = None
    sequence: str = ""
    frame: int | None = None

    @property
    def fractions(self) -> NDArray[np.float64]:
        """Area fraction of each class, float64 (C,); NaN where no pixel belongs to a class."""
        total = self.areas.sum()
        return self.areas / total if total else np.full(len(self.areas), np.nan)

    @property
    def place(self) -> dict[str, object]:
        """Cells of a table that say which frame of which sequence it is; none of other fields."""
        return {"sequence": self.sequence, "frame": self.frame} if self.sequence else {}


def clusters(sequences: Sequence[str]) -> NDArray[np.int64]:
    """Return which fields count as one in an interval: numbers from 0 in order, int64 (F,).

    Frames beside each other show nearly the same, so that a sequence tells as much of the spread
    between fields as a single field does: it is the sampling unit, its frames are parts of it
    (cluster sampling, Cochran 1977, chapter 9).

    Args:
        sequences: of each field, "" for none, which stands for itself.
    """
    known: dict[object, int] = {}
    keys = (name or number for number, name in enumerate(sequences))
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def together(items: Sequence[Item], sequences: Sequence[str]) -> list[list[Item]]:
    """Return what belongs to each field that counts as one, see :func:`clusters`.

    Args:
        items: one a field.
        sequences: of each.
    """
    found: dict[int, list[Item]] = {}
    for number, item in zip(clusters(sequences).tolist(), items, strict=True):
        found.setdefault(number, []).append(item)
    return list(found.values())


def averaged(values: Sequence[float], sequences: Sequence[str]) -> list[float]:
    """Return a value for each field that counts as one: that of a sequence is its frames' mean.

    Args:
        values: one a field; NaN counts nowhere.
        sequences: of each.
    """
    found = []
    for own in together(values, sequences):
        known = [value for value in own if not math.isnan(value)]
        # The very bits of a field that stands for itself.
        found.append(own[0] if len(own) == 1 else float(np.mean(known)) if known else math.nan)
    return found


@dataclass(frozen=True)
class Masked:
    """A field with its pixels, as the measurements take it; none of them keeps it.

    Attributes:
        field: where the pixels lie.
        mask: class of each pixel, uint8 (H, W); 255 (``core.labels.IGNORE``) counts nowhere.
        labels: numbers of objects or grains, int32 (H, W), 0 for none, where the file itself
            numbers them; None where it holds classes alone.
        picture: gives the grey levels of the micrograph, (H, W) in its own type; None where
            there is none beside the mask.
        aspect: height of a pixel over its width in the files. Measurements get square pixels
            (:func:`squared`), so that lengths are right in every direction.
    """

    field: Field
    mask: NDArray[np.uint8]
    labels: NDArray[np.int32] | None = None
    picture: Callable[[], Array] | None = None
    aspect: float = 1.0


def squared(one: Masked) -> Masked:
    """Return a field with square pixels: rows or columns are repeated, so that no line breaks.

    Args:
        one: the field; its pixel size is the side of the square of the area of a pixel.
    """
    aspect = one.aspect
    if aspect == 1:
        return one
    high, wide = one.mask.shape
    down, across = (aspect, 1.0) if aspect > 1 else (1.0, 1 / aspect)
    rows = _repeated(high, down)
    columns = _repeated(wide, across)

    def stretched(pixels: Array) -> Array:
        return pixels[rows][:, columns]

    picture = one.picture
    size = one.field.pixel_size
    mask = stretched(one.mask)
    field = replace(
        one.field,
        areas=areas(mask, len(one.field.areas)),
        pixel_size=None if size is None else size / math.sqrt(down * across),
    )
    return Masked(
        field,
        mask,
        None if one.labels is None else stretched(one.labels),
        None if picture is None else lambda: stretched(picture()),
        aspect,
    )


def _repeated(count: int, factor: float) -> NDArray[np.int64]:
    """Return which of so many rows each of factor times as many shows."""
    places = (np.arange(round(count * factor)) + 0.5) / factor
    return np.minimum(places.astype(np.int64), count - 1)


def areas(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class, int64 (C,); indices from ``num_classes`` on are no class."""
    return histogram(mask, num_classes)[:num_classes]
