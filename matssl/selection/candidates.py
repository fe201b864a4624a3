"""What is known of the pictures, or regions, that one may label next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Box:
    """A region of a picture in pixels: rows and columns from the upper left corner."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """How many pixels it has."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


@dataclass(frozen=True)
class Candidates:
    """Arrays of N candidates, in their order.

    Attributes:
        specimens: of each; "" where nothing tells it.
        scores: by name, (N,) each; the larger, the rather it is to be labelled.
        class_scores: (N, C), entropy of where each class may be; None without a model.
        shares: (N, C), predicted share of each class; None without a model.
        features: (N, D); None where there are none.
        labelled_features: (L, D) of what is labelled already.
        labelled: how many pictures (or regions) are labelled already.
        labelled_pixels: (C,), of each class; None where not known.
        background: index of the class that is no foreground; None: that with the largest share.
        power: of the noise, see :func:`matssl.selection.stratified.noised`; None: 1 + labelled.
    """

    specimens: tuple[str, ...]
    scores: Mapping[str, Numbers] = field(default_factory=dict)
    class_scores: Numbers | None = None
    shares: Numbers | None = None
    features: Numbers | None = None
    labelled_features: Numbers | None = None
    labelled: int = 0
    labelled_pixels: Numbers | None = None
    background: int | None = None
    power: float | None = None

    def __len__(self) -> int:
        return len(self.specimens)

    @property
    def beta(self) -> float:
        """Power of the noise: it fades as labels come."""
        return float(1 + self.labelled) if self.power is None else self.power

    @property
    def behind(self) -> int:
        """Index of the background.

        Raises:
            ValueError: there are no shares.
        """
        if self.background is not None:
            return self.background
        if self.labelled_pixels is not None and self.labelled_pixels.any():
            return int(self.labelled_pixels.argmax())
        if self.shares is None:
            raise ValueError("the background is told by shares of classes")
        return int(self.shares.mean(axis=0).argmax())


def cut(height: int, width: int, side: int | None) -> list[Box]:
    """Return the regions of a picture, row by row: they cover it, none overlaps another.

    Each side of the picture is cut into equal parts, as many as come nearest to the wanted side.

    Args:
        height: of the picture.
        width: of it.
        side: wanted side of a region in pixels; None: the whole picture is one.
    """
    if side is None:
        return [Box(0, 0, height, width)]
    rows, columns = (
        np.linspace(0, length, max(1, round(length / side)) + 1).round().astype(int).tolist()
        for length in (height, width)
    )
    return [
        Box(top, left, below - top, right - left)
        for top, below in zip(rows[:-1], rows[1:], strict=True)
        for left, right in zip(columns[:-1], columns[1:], strict=True)
    ]
