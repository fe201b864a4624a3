"""A field: one image of a specimen, the area of each class on it, and its mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, histogram


@dataclass(frozen=True)
class Field:
    """What one image gave.

    Attributes:
        image: its file.
        name: of its output files.
        specimen: which it shows; images of one specimen are no independent samples.
        areas: pixels of each class, int64 (C,); those that belong to no class count nowhere.
        pixel_size: nm, None where unknown.
    """

    image: Path
    name: str
    specimen: str
    areas: NDArray[np.int64]
    pixel_size: float | None = None

    @property
    def fractions(self) -> NDArray[np.float64]:
        """Area fraction of each class, float64 (C,); NaN where no pixel belongs to a class."""
        total = self.areas.sum()
        return self.areas / total if total else np.full(len(self.areas), np.nan)


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
    """

    field: Field
    mask: NDArray[np.uint8]
    labels: NDArray[np.int32] | None = None
    picture: Callable[[], Array] | None = None


def areas(mask: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Return the pixels of each class, int64 (C,); indices from ``num_classes`` on are no class."""
    return histogram(mask, num_classes)[:num_classes]
