"""In which unit the lengths of a table are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Names with their nm, the finest first; each serves up to 1000 of it.
METRIC = (("nm", 1.0), ("µm", 1e3), ("mm", 1e6))


@dataclass(frozen=True)
class Unit:
    """A unit of length.

    Attributes:
        name: as it stands in the head of a column.
        nm: how many nm it is; None for pixels.
    """

    name: str
    nm: float | None

    def of(self, pixels: float, pixel_size: float | None) -> float:
        """Return a length in pixels in this unit.

        Args:
            pixels: the length.
            pixel_size: nm of a pixel of its field.
        """
        if self.nm is None or pixel_size is None:
            return pixels
        return pixels * pixel_size / self.nm


PIXELS = Unit("px", None)


def common(pixels: Sequence[float], sizes: Sequence[float | None]) -> Unit:
    """Return the unit in which lengths of several fields are read best.

    Args:
        pixels: typical lengths, px.
        sizes: nm of a pixel of each of their fields.

    Returns:
        Pixels where one of the sizes is not known: lengths in two units are no column.
    """
    known = [length * size for length, size in zip(pixels, sizes, strict=True) if size is not None]
    if len(known) < len(sizes) or not known:
        return PIXELS
    middle = float(np.median(known))
    for name, nm in METRIC:
        if middle < 1000 * nm:
            return Unit(name, nm)
    return Unit(*METRIC[-1])
