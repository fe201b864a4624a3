"""Where the tiles of an image lie and how neighbours are blended; arithmetic without a network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError

# Larger tiles waste memory, smaller ones border; both measured on U-Net ResNet-18.
MIN_TILE, MAX_TILE, DEFAULT_OVERLAP = 256, 640, 64
# Of the sides of tiles where a model does not say what it needs.
MULTIPLE = 32


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie.

    Attributes:
        tile: (height, width) of every tile, multiples of what the model needs.
        tops: first row of each row of tiles.
        lefts: first column of each column of tiles.
    """

    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


def plan(
    height: int,
    width: int,
    tile_size: int | None = None,
    overlap: int | None = None,
    multiple: int = MULTIPLE,
) -> Tiling:
    """Return tiles that cover an image with few pixels computed twice.

    Args:
        height: of the image.
        width: of the image.
        tile_size: side of a tile, rounded up to a multiple; None fits it to the image.
        overlap: of neighbours in pixels; None takes 64.
        multiple: sides of tiles are multiples of it, and overlaps that much smaller at least.

    Raises:
        UserError: see :func:`check`.
    """
    check(tile_size, overlap)
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    sides = []
    for length in (height, width):
        if tile_size is not None:
            sides.append(_up(tile_size, multiple))
        else:
            sides.append(_best_side(length, overlap, multiple))
    tops = starts(height, sides[0], overlap, multiple)
    lefts = starts(width, sides[1], overlap, multiple)
    return Tiling((sides[0], sides[1]), tops, lefts)


def check(tile_size: int | None, overlap: int | None) -> None:
    """Refuse tiles that cover no image.

    Raises:
        UserError: a tile without pixels or a negative overlap.
    """
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    if overlap < 0 or (tile_size is not None and tile_size < 1):
        raise UserError(
            f"tiles of {tile_size} pixels that overlap by {overlap} cannot cover an image; give a "
            "--tile_size of 1 or more and an --overlap of 0 or more"
        )


def _up(length: int, multiple: int) -> int:
    return max(multiple, -(-length // multiple) * multiple)


def _best_side(length: int, overlap: int, multiple: int) -> int:
    """Return the side between MIN_TILE and MAX_TILE that computes the fewest pixels."""
    if length <= MAX_TILE:
        return _up(length, multiple)
    sides = range(_up(MIN_TILE, multiple), MAX_TILE + 1, multiple)
    return min(sides, key=lambda side: (len(starts(length, side, overlap, multiple)) * side, -side))


def starts(length: int, side: int, overlap: int, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """Return evenly spread starts that cover ``length``."""
    if length <= side:
        return (0,)
    overlap = min(overlap, side - multiple)
    count = -(-(length - overlap) // (side - overlap))
    return tuple(int(v) for v in np.linspace(0, length - side, count).round())


def windows(starts: tuple[int, ...], side: int, length: int) -> list[NDArray[np.float32]]:
    """Return the blending weights of each tile along one axis; they sum to one everywhere."""
    weights = []
    for number, start in enumerate(starts):
        weight = np.ones(side, np.float64)
        if number > 0:
            shared = starts[number - 1] + side - start
            weight[:shared] *= _ramp(shared)
        if number + 1 < len(starts):
            shared = start + side - starts[number + 1]
            weight[side - shared :] *= _ramp(shared)[::-1]
        weights.append(weight)
    total = np.zeros(max(length, starts[-1] + side))
    for start, weight in zip(starts, weights, strict=True):
        total[start : start + side] += weight
    return [
        (weight / total[start : start + side]).astype(np.float32)
        for start, weight in zip(starts, weights, strict=True)
    ]


def _ramp(length: int) -> NDArray[np.float64]:
    """Return a raised cosine from 0 to 1, without the ends."""
    return 0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)
