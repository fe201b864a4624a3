"""Images of any size in tiles, with bounded memory, whatever computes the tiles; without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.tiles import MULTIPLE, Tiling, plan, windows

D4 = tuple((flip, turns) for flip in (False, True) for turns in range(4))


def blended(
    probabilities: Callable[[Array], Array],
    image: NDArray[np.float32],
    *,
    tile_size: int | None = None,
    overlap: int | None = None,
    multiple: int = MULTIPLE,
    tta: bool = False,
    batch: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Return class probabilities float32 (K, H, W) of an image.

    Neighbouring tiles are blended with cosine weights. One row of tiles is held at a time, so with
    a memory-mapped ``out`` an image of any size goes through. With ``tta`` the whole image is
    predicted in all eight orientations, so that the result turns with the image whatever its size
    and wherever its tiles lie.

    Args:
        probabilities: tiles, float32 (B, C, h, w), to their probabilities, float32 (B, K, h, w).
        image: normalised, float32 (C, H, W); may be memory-mapped.
        tile_size: see :func:`matssl.tiles.plan`.
        overlap: see :func:`matssl.tiles.plan`.
        multiple: of the sides of tiles.
        tta: average the probabilities over the eight elements of D4; eight times the time.
        batch: tiles computed at once; no influence on the result beyond rounding.
        out: float32 (K, H, W), filled and returned.
    """
    sides = tile_size, overlap, multiple
    orientations = D4 if tta else D4[:1]
    for number, (flip, turns) in enumerate(orientations):
        # Views, not copies: what is written into the turned view lands in its place in the result.
        turned = oriented(image, flip, turns)
        target = None if out is None else oriented(out, flip, turns)
        for top, rows in _strips(probabilities, turned, sides, batch):
            if out is None:
                out = np.empty((rows.shape[0], *image.shape[1:]), np.float32)
            if target is None:
                target = oriented(out, flip, turns)
            place = target[:, top : top + rows.shape[1]]
            if number == 0:
                place[:] = rows / len(orientations)
            else:
                place += rows / len(orientations)
    assert out is not None
    return out


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities of logits (B, K, ...), changed in place.

    The largest of a pixel is taken off first, so that no power overflows.
    """
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def oriented(planes: Array, flip: bool, turns: int) -> Array:
    """Return a view of (C, H, W), mirrored and then turned counter-clockwise."""
    return np.rot90(planes[:, :, ::-1] if flip else planes, turns, (1, 2))


def _strips(
    probabilities: Callable[[Array], Array],
    image: Array,
    sides: tuple[int | None, int | None, int],
    batch: int,
) -> Iterator[tuple[int, Array]]:
    """Yield first row and finished rows (K, h, W) of blended probabilities, from the top down."""
    _, height, width = image.shape
    tiling = plan(height, width, *sides)
    th, tw = tiling.tile
    window_y = windows(tiling.tops, th, height)
    window_x = windows(tiling.lefts, tw, width)
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
) -> Iterator[tuple[list[int], Array]]:
    """Yield column numbers and tiles of one row of tiles, (b, C, th, tw), borders mirrored."""
    th, tw = tiling.tile
    columns = list(range(len(tiling.lefts)))
    for start in range(0, len(columns), batch):
        numbers = columns[start : start + batch]
        tiles = [
            _padded(image[:, top : top + th, left : left + tw], th, tw)
            for left in (tiling.lefts[n] for n in numbers)
        ]
        yield numbers, np.stack(tiles)


def _padded(tile: Array, height: int, width: int) -> Array:
    """Return the tile at full size; what lies outside the image is mirrored."""
    bottom, right = height - tile.shape[1], width - tile.shape[2]
    if bottom == 0 and right == 0:
        return np.asarray(tile)
    return np.pad(tile, ((0, 0), (0, bottom), (0, right)), mode="symmetric")
