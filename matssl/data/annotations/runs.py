"""Masks as lengths of runs, zeros first: COCO's, row-wise ones, and Label Studio's bit stream."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.data.annotations.drawing import Patch

Counts = NDArray[np.int64]
# Characters of one number in COCO's text: seven carry 35 bits.
LONGEST = 7
# Label Studio's word of a byte, and the sizes of its lengths in bits.
WORD, LENGTHS = 8, (3, 4, 8, 16)


def checked(counts: Sequence[object] | Counts, pixels: int, where: str) -> Counts:
    """Return lengths of runs as int64.

    Raises:
        UserError: they are no whole numbers from 0 on, or do not sum up to the pixels.
    """
    try:
        found = np.asarray(counts)
        if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
            raise ValueError
        found = found.astype(np.int64)
    except (ValueError, OverflowError, TypeError) as error:
        raise UserError(f"{where}: its run lengths are no whole numbers") from error
    low, high = (int(found.min()), int(found.max())) if len(found) else (0, 0)
    if low < 0 or high > pixels or int(found.sum()) != pixels:
        said = f"{int(found.sum())}" if 0 <= low and high <= pixels else "something else"
        raise UserError(f"{where}: its run lengths cover {said}, not {pixels} pixels")
    return found


def of_pixels(flat: NDArray[np.bool_]) -> Counts:
    """Return the lengths of runs of (N,) pixels, the first of zeros, perhaps 0 of them."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    found = np.diff(np.concatenate([[0], edges, [len(flat)]]))
    return np.concatenate([[0], found]) if len(flat) and flat[0] else found


def rows(counts: Counts, row: int, column: int, size: tuple[int, int]) -> Patch:
    """Return the patch whose runs go along its rows.

    Args:
        counts: checked lengths.
        row: of its first row.
        column: of its first column.
        size: its rows and columns.
    """
    return Patch(row, column, _unrolled(counts).reshape(size))


def columns(counts: Counts, height: int) -> Patch:
    """Return the patch whose runs go down the columns of a picture, those that it fills.

    Args:
        counts: checked lengths.
        height: rows of the picture.
    """
    ends = np.cumsum(counts)
    full = np.flatnonzero(counts[1::2]) * 2 + 1
    if not len(full):
        return Patch(0, 0, np.zeros((0, 0), np.bool_))
    first = int(ends[full[0]] - counts[full[0]]) // height
    last = -(-int(ends[full[-1]]) // height)
    kept = counts[: full[-1] + 1].copy()
    # What lies in columns before the first and after the last that it fills.
    kept[: full[0]] = 0
    kept[full[0] - 1] = int(ends[full[0]] - counts[full[0]]) - first * height
    kept = np.append(kept, last * height - int(ends[full[-1]]))
    return Patch(0, first, _unrolled(kept).reshape(-1, height).T)


def _unrolled(counts: Counts) -> NDArray[np.bool_]:
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts)


def down_columns(patch: Patch, size: tuple[int, int]) -> Counts:
    """Return the runs of a patch inside a picture, down its columns.

    Args:
        patch: that reaches out of the picture nowhere.
        size: rows and columns of the picture.
    """
    height, width = patch.pixels.shape
    band = np.zeros((width, size[0]), np.bool_)
    band[:, patch.row : patch.row + height] = patch.pixels.T
    found = of_pixels(band.ravel())
    found[0] += patch.column * size[0]
    rest = (size[1] - patch.column - width) * size[0]
    if len(found) % 2:
        found[-1] += rest
        return found
    return np.append(found, rest) if rest else found


def from_text(text: str, where: str) -> Counts:
    """Return the lengths in COCO's text.

    Five bits a character, lowest first, 32 where the number goes on, 48 added; from the fourth
    number on the difference to the one two before.

    Raises:
        UserError: it is none.
    """
    try:
        data = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: its run lengths are no text of COCO") from error
    if not len(data) or data.min() < 0 or data.max() > 63 or data[-1] & 32:
        raise UserError(f"{where}: its run lengths are no text of COCO, or cut off")
    ends = np.flatnonzero(~(data & 32).astype(np.bool_)) + 1
    starts = np.concatenate([[0], ends[:-1]])
    if (ends - starts).max() > LONGEST:
        raise UserError(f"{where}: its run lengths are no text of COCO")
    place = np.arange(len(data)) - np.repeat(starts, ends - starts)
    found = np.add.reduceat((data & 31) << (5 * place), starts)
    negative = (data[ends - 1] & 16).astype(np.bool_)
    found -= np.where(negative, np.int64(1) << (5 * (ends - starts)), 0)
    for first in (1, 2):
        found[first::2] = np.cumsum(found[first::2])
    return found


def to_text(counts: Counts) -> str:
    """Return lengths as COCO's text, see :func:`from_text`."""
    changes = counts.copy()
    changes[3:] -= counts[1:-2]
    letters: list[int] = []
    for change in changes.tolist():
        more = True
        while more:
            bits = change & 31
            change >>= 5
            more = change != (-1 if bits & 16 else 0)
            letters.append((bits | 32 if more else bits) + 48)
    return bytes(letters).decode("ascii")


def alpha(data: bytes, size: tuple[int, int], where: str) -> Patch:
    """Return where the alpha of Label Studio's brush is above 0.

    The stream holds RGBA bytes row by row: 32 bits of their number, 5 bits of word size - 1, four
    times 4 bits of a size - 1, then blocks: one bit (repeated or not), two bits (which size), the
    length - 1 in as many bits, and one word or as many as the length says.

    Args:
        data: the stream.
        size: rows and columns of the picture.
        where: for messages.

    Raises:
        UserError: it is cut off, or of another picture.
    """
    height, width = size
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    found = np.zeros(height * width, np.bool_)
    place, at = 0, 53
    stream = _Stream(data, where)
    number, word = stream.read(0, 32), stream.read(32, 5) + 1
    sizes = [stream.read(37 + 4 * i, 4) + 1 for i in range(4)]
    if number != 4 * height * width:
        raise UserError(
            f"{where}: its brush covers {number} bytes, not the {4 * height * width} of {height} x "
            f"{width} pixels"
        )
    while place < number:
        repeated, which = stream.read(at, 1), stream.read(at + 1, 2)
        length = stream.read(at + 3, sizes[which]) + 1
        at += 3 + sizes[which]
        if place + length > number:
            raise UserError(f"{where}: its brush covers more than the picture")
        # The first alpha among these bytes: those at 3, 7, 11, ...
        first = -(place + 1) % 4
        pixels = slice((place + first) // 4, (place + length) // 4)
        if repeated:
            found[pixels] = stream.read(at, word) > 0
            at += word
        else:
            if at + length * word > len(bits):
                raise UserError(f"{where}: its brush is cut off")
            words = bits[at : at + length * word].reshape(length, word)
            found[pixels] = words[first::4].any(axis=1)
            at += length * word
        place += length
    return Patch(0, 0, found.reshape(size))


class _Stream:
    """Bits of a stream, the highest of each byte first."""

    def __init__(self, data: bytes, where: str) -> None:
        self.data, self.where = data, where

    def read(self, at: int, number: int) -> int:
        """Return a whole number of some bits from a place on."""
        end = at + number
        if end > 8 * len(self.data):
            raise UserError(f"{self.where}: its brush is cut off")
        part = int.from_bytes(self.data[at // 8 : -(-end // 8)], "big")
        return (part >> (-end % 8)) & ((1 << number) - 1)


def brush(pixels: NDArray[np.bool_]) -> bytes:
    """Return a mask as Label Studio's stream: every byte of RGBA 255 inside and 0 outside.

    Args:
        pixels: bool (rows, columns) of the whole picture.
    """
    words = [f"{4 * pixels.size:032b}", f"{WORD - 1:05b}", *(f"{n - 1:04b}" for n in LENGTHS)]
    for value, count in zip(itertools.cycle((0, 255)), of_pixels(pixels.ravel()).tolist()):
        words += [
            f"1{which:02b}{length - 1:0{LENGTHS[which]}b}{value:08b}"
            for length, which in _blocks(4 * count)
        ]
    text = "".join(words)
    bits = np.frombuffer(text.encode("ascii"), np.uint8) - ord("0")
    return np.packbits(bits).tobytes()


def _blocks(number: int) -> Iterator[tuple[int, int]]:
    """Yield lengths that a block may have, with the number of their size."""
    most = 1 << LENGTHS[-1]
    while number:
        length = min(number, most)
        yield length, next(i for i, bits in enumerate(LENGTHS) if length <= 1 << bits)
        number -= length
