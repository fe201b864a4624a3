"""Masks and predictions of two classes as levels from 0 to 255, and where the foreground begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data import readers

# Above is foreground, as in unet-compare.
THRESHOLD = 128
# Class numbers end here, and most of those up to the highest one occur; levels of faint
# predictions leave gaps, or reach higher.
MOST_CLASSES = 32
FULL_8, FULL_16 = 255, 65_535


@dataclass(frozen=True)
class Scale:
    """Where the foreground of the files of a folder begins.

    Attributes:
        threshold: foreground is what lies above, 0 to 255.
        numbers: whether files of 0 and 1 mean background and foreground; where others hold levels
            in between, a 1 is a very low probability.
    """

    threshold: float = THRESHOLD
    numbers: bool = True

    def foreground(self, levels: Array) -> NDArray[np.bool_]:
        """Return which pixels (H, W) are foreground."""
        if self.numbers and levels.max(initial=0) <= 1:
            return np.asarray(levels > 0)
        return np.asarray(levels > self.threshold)


def read(path: Path) -> Array:
    """Return the levels of a file (H, W), 0 to 255; of class numbers 0 and 1 these.

    Colours count by their brightest channel, 16 bits are scaled to 255, and fractions from 0 to 1
    (probabilities as TIFF) as well.

    Raises:
        UserError: it cannot be read as a mask.
    """
    try:
        raw = readers.read_mask(path)
    except UserError:
        pixels = readers.read(path).pixels
        if pixels.dtype.kind != "f" or pixels.min() < 0 or pixels.max() > 1:
            raise
        return np.asarray(FULL_8 * pixels.astype(np.float32))
    values = np.asarray(raw)
    palette = getattr(raw, "palette", None)
    if palette is not None and values.ndim == 2:
        values = palette[np.minimum(values, len(palette) - 1)]
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] == 2 else 3].max(axis=2)
    if values.max(initial=0) > FULL_8:
        return np.asarray(values.astype(np.float32) * (FULL_8 / FULL_16))
    if getattr(raw, "one_bit", False):
        return np.asarray(FULL_8 * (values > 0).astype(np.uint8))
    return np.asarray(values)


def scale(
    paths: Sequence[Path],
    name: str,
    threshold: float = THRESHOLD,
    advice: str = " (matssl.tools.measure INPUT --what objects takes any)",
) -> Scale:
    """Return where the foreground begins in files of one folder.

    Args:
        paths: all of them.
        name: of the flag, for the refusal.
        threshold: above is foreground, 0 to 255.
        advice: what to do where they number more than two classes.

    Raises:
        UserError: they number more than two classes, or have 1 and 255 side by side.
    """
    soft, seen = False, np.zeros(FULL_8 + 1, bool)
    ignoring: Path | None = None
    for path in paths:
        try:
            found = np.rint(read(path)).astype(np.uint8)
        except (UserError, OSError):
            # It fails by itself where its turn comes.
            continue
        own = np.bincount(found.ravel(), minlength=FULL_8 + 1) > 0
        soft = soft or bool(own[2:FULL_8].any())
        seen |= own
        if own[1] and own[FULL_8] and not own[2:FULL_8].any():
            ignoring = path
    top = int(np.flatnonzero(seen).max(initial=0))
    if 1 < top < MOST_CLASSES and int(seen[1 : top + 1].sum()) * 2 > top:
        raise UserError(
            f"{name} holds class numbers up to {top}; masks of two classes are wanted, 0 and "
            f"255{advice}"
        )
    if ignoring is not None and not soft:
        raise UserError(
            f"{name}: {ignoring.name} holds 1 and 255 side by side, so that 255 may be pixels to "
            f"be ignored; masks of two classes are wanted, 0 and 255{advice}"
        )
    return Scale(threshold, numbers=not soft)
