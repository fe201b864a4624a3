"""Prediction of images of any size in tiles, with bounded memory; the only predictor there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from matssl.core.errors import UserError

Array = NDArray[Any]
STRIDE = 32
# Larger tiles waste memory, smaller ones border; both measured on U-Net ResNet-18.
MIN_TILE, MAX_TILE, DEFAULT_OVERLAP = 256, 640, 64
D4 = tuple((flip, turns) for flip in (False, True) for turns in range(4))


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie.

    Attributes:
        tile: (height, width) of every tile, multiples of 32.
        tops: first row of each row of tiles.
        lefts: first column of each column of tiles.
    """

    tile: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


def plan(
    height: int, width: int, tile_size: int | None = None, overlap: int | None = None
) -> Tiling:
    """Return tiles that cover an image with few pixels computed twice.

    Args:
        height: of the image.
        width: of the image.
        tile_size: side of a tile, rounded up to a multiple of 32; None fits it to the image.
        overlap: of neighbours in pixels; None takes 64.

    Raises:
        UserError: a tile without pixels or a negative overlap.
    """
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    if overlap < 0 or (tile_size is not None and tile_size < 1):
        raise UserError(
            f"tiles of {tile_size} pixels that overlap by {overlap} cannot cover an image; give a "
            "--tile_size of 1 or more and an --overlap of 0 or more"
        )
    sides = []
    for length in (height, width):
        if tile_size is not None:
            sides.append(_up(tile_size))
        else:
            sides.append(_best_side(length, overlap))
    tops = _starts(height, sides[0], overlap)
    lefts = _starts(width, sides[1], overlap)
    return Tiling((sides[0], sides[1]), tops, lefts)


def predict(
    model: nn.Module | Callable[[Tensor], Tensor],
    image: NDArray[np.float32],
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    tta: bool = False,
    batch: int = 1,
    device: torch.device | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities float32 (K, H, W) of an image.

    Neighbouring tiles are blended with cosine weights. One row of tiles is held at a time, so with
    a memory-mapped ``out`` an image of any size goes through. With ``tta`` the whole image is
    predicted in all eight orientations, so that the result turns with the image whatever its size
    and wherever its tiles lie.

    Args:
        model: (B, C, h, w) to logits (B, K, h, w), in evaluation mode.
        image: normalised, float32 (C, H, W); may be memory-mapped.
        tile_size: see :func:`plan`.
        overlap: see :func:`plan`.
        tta: average the probabilities over the eight elements of D4; eight times the time.
        batch: tiles computed at once; no influence on the result beyond rounding.
        device: where the model lives; the CPU when None.
        autocast: makes the context of the forward passes.
        out: float32 (K, H, W), filled and returned.
    """
    device = device or torch.device("cpu")
    context = autocast or nullcontext

    def probabilities(tiles: Tensor) -> Array:
        with torch.inference_mode(), context():
            values = model(tiles.to(device)).float().softmax(dim=1).cpu().numpy()
        return np.asarray(values)

    orientations = D4 if tta else D4[:1]
    for number, (flip, turns) in enumerate(orientations):
        # Views, not copies: what is written into the turned view lands in its place in the result.
        turned = _oriented(image, flip, turns)
        target = None if out is None else _oriented(out, flip, turns)
        for top, rows in _strips(probabilities, turned, tile_size, overlap, batch):
            if out is None:
                out = np.empty((rows.shape[0], *image.shape[1:]), np.float32)
            if target is None:
                target = _oriented(out, flip, turns)
            place = target[:, top : top + rows.shape[1]]
            if number == 0:
                place[:] = rows / len(orientations)
            else:
                place += rows / len(orientations)
    assert out is not None
    return out


def _oriented(planes: Array, flip: bool, turns: int) -> Array:
    """Return a view of (C, H, W), mirrored and then turned counter-clockwise."""
    return np.rot90(planes[:, :, ::-1] if flip else planes, turns, (1, 2))


def _strips(
    probabilities: Callable[[Tensor], Array],
    image: Array,
    tile_size: int | None,
    overlap: int | None,
    batch: int,
) -> Iterator[tuple[int, Array]]:
    """Yield first row and finished rows (K, h, W) of blended probabilities, from the top down."""
    _, height, width = image.shape
    tiling = plan(height, width, tile_size, overlap)
    th, tw = tiling.tile
    window_y = _windows(tiling.tops, th, height)
    window_x = _windows(tiling.lefts, tw, width)
    strip: Array | None = None
    for row, top in enumerate(tiling.tops):
        for numbers, tiles in _batches(image, tiling, top, batch):
            values = probabilities(tiles)
            if strip is None:
                strip = np.zeros((values.shape[1], th, width), np.float32)
            for number, value in zip(numbers, values, strict=True):
                left = tiling.lefts[number]
                cols = min(tw, width - left)
                weight = window_y[row][:, None] * window_x[number][None, :cols]
                strip[:, :, left : left + cols] += value[:, :, :cols] * weight
        assert strip is not None
        # Rows above the next tile are complete; those below are carried over.
        following = tiling.tops[row + 1] if row + 1 < len(tiling.tops) else height
        done = min(following, height) - top
        yield top, strip[:, :done]
        # The halves may overlap: numpy copies in the right order.
        strip[:, : th - done] = strip[:, done:]
        strip[:, th - done :] = 0


def _batches(
    image: Array, tiling: Tiling, top: int, batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield column numbers and tiles of one row of tiles, (b, C, th, tw), borders mirrored."""
    th, tw = tiling.tile
    columns = list(range(len(tiling.lefts)))
    for start in range(0, len(columns), batch):
        numbers = columns[start : start + batch]
        tiles = [
            _padded(image[:, top : top + th, left : left + tw], th, tw)
            for left in (tiling.lefts[n] for n in numbers)
        ]
        stack = torch.from_numpy(np.stack(tiles))
        yield numbers, stack.contiguous(memory_format=torch.channels_last)


def _padded(tile: Array, height: int, width: int) -> Array:
    """Return the tile at full size; what lies outside the image is mirrored."""
    bottom, right = height - tile.shape[1], width - tile.shape[2]
    if bottom == 0 and right == 0:
        return np.asarray(tile)
    return np.pad(tile, ((0, 0), (0, bottom), (0, right)), mode="symmetric")


def _up(length: int) -> int:
    return max(STRIDE, -(-length // STRIDE) * STRIDE)


def _best_side(length: int, overlap: int) -> int:
    """Return the side between MIN_TILE and MAX_TILE that computes the fewest pixels."""
    if length <= MAX_TILE:
        return _up(length)
    sides = range(MIN_TILE, MAX_TILE + 1, STRIDE)
    return min(sides, key=lambda side: (len(_starts(length, side, overlap)) * side, -side))


def _starts(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """Return evenly spread starts that cover ``length``."""
    if length <= side:
        return (0,)
    overlap = min(overlap, side - STRIDE)
    count = -(-(length - overlap) // (side - overlap))
    return tuple(int(v) for v in np.linspace(0, length - side, count).round())


def _windows(starts: tuple[int, ...], side: int, length: int) -> list[NDArray[np.float32]]:
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
