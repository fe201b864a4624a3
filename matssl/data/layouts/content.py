"""Whether a picture is a mask, by what it holds: few values in flat areas.

Headers come first, then a few kilobytes, and only what may be a mask is decoded: thousands of
micrographs are told from masks within seconds.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data import readers
from matssl.data.readers import Header
from matssl.data.readers.raster import reported
from matssl.data.readers.tiff import listening

# Classes a person can tell apart, and the colours or grey levels that stand for them.
FEW = 32
# Rows of a decoded picture that are looked at, spread over its height.
ROWS = 96
# A mask with soft or JPEG edges: so many levels beside a heap still belong to it, of 255.
SOFT = 4
# Bytes that are unpacked before a picture is decoded.
START = 1 << 15
# Bytes a pixel: no coder needs as many for the pixels of FEW values in areas.
DENSE = 0.75
# The same of JPEG, whose bytes are those of edges and noise.
DENSE_JPEG = 0.3


class Holds(Enum):
    """What a picture holds: one value, few values in areas, or grey levels of a micrograph."""

    ONE = "one value"
    FEW = "few values"
    MANY = "many values"


@dataclass(frozen=True)
class Size:
    """Height and width, in pixels; 0 where the file cannot be read."""

    height: int
    width: int

    def fits(self, image: Size) -> bool:
        """Return whether a mask of this size may be that of an image.

        A mask drawn on the picture above the information bar lacks up to a fifth of the rows.
        """
        if 0 in (self.height, self.width) or self.width != image.width:
            return False
        return 0.8 * image.height <= self.height <= image.height


def size(path: Path) -> Size:
    """Return height and width from the first bytes of a file."""
    try:
        head = readers.header(path)
    except UserError:
        return Size(0, 0)
    return Size(head.height, head.width)


def holds(path: Path) -> Holds | None:
    """Return what a picture holds, None where it cannot be read."""
    try:
        head = readers.header(path)
        if _surely_many(path, head):
            return Holds.MANY
        return of_pixels(readers.read_mask(path))
    except UserError:
        # Fractions are grey levels.
        return Holds.MANY if path.is_file() and _is_float(path) else None


def of_pixels(pixels: Array) -> Holds:
    """Return what an array of pixels holds.

    A mask is flat: neighbours are alike nearly everywhere. It has few values; or many, as where
    each particle has a number of its own, and is flat off its most common ones too; or heaps of
    values, as where JPEG or a soft brush touched it.

    Args:
        pixels: (H, W) or (H, W, C) of any type.
    """
    step = max(1, len(pixels) // ROWS)
    values = _numbers(pixels[step // 2 :: step])
    found, counts = np.unique(values, return_counts=True)
    if len(found) == 1:
        # Rows between those that were looked at may hold more; a large picture goes by strips.
        strips = range(0, len(pixels), ROWS)
        one = all(bool((_numbers(pixels[i : i + ROWS]) == found[0]).all()) for i in strips)
        return Holds.ONE if one else Holds.FEW
    alike = values[:, 1:] == values[:, :-1]
    flat = float(alike.mean()) if alike.size else 0.0
    if len(found) <= 3 or (len(found) <= FEW and flat >= 0.4):
        return Holds.FEW
    if flat < 0.6:
        return Holds.MANY
    common = found[np.argsort(counts)[-2:]]
    if _numbered(values, alike, common, len(found)) or _heaps(found, counts):
        return Holds.FEW
    return Holds.MANY


def _numbered(values: Array, alike: Array, common: Array, kinds: int) -> bool:
    """Return whether areas off the commonest values are flat too: one number a particle."""
    rare = ~np.isin(values[:, 1:], common)
    if kinds > max(FEW, values.size // 50) or rare.sum() < 50:
        return False
    return bool(alike[rare].mean() > 0.75)


def _heaps(found: Array, counts: Array) -> bool:
    """Return whether nearly all pixels lie close to two or more far values, up to six."""
    level = found.astype(np.float64)
    if level.max() > 65_535 or level.min() < 0:
        # Several channels in one number: nothing is near anything.
        return False
    level *= 255.0 / max(level.max(), 1.0)
    left = counts.astype(np.float64) / counts.sum()
    covered, tops = 0.0, []
    for _ in range(6):
        top = level[int(left.argmax())]
        near = np.abs(level - top) <= SOFT
        covered += float(left[near].sum())
        left = np.where(near, 0.0, left)
        tops.append(top)
        if covered > 0.92:
            break
    return covered > 0.92 and len(tops) > 1 and max(tops) - min(tops) > 10 * SOFT


def _numbers(pixels: Array) -> Array:
    """Return one number a pixel: colours in R, G, B order become one, alpha is left out."""
    if pixels.ndim == 2:
        return pixels
    colour = pixels[..., : 3 if pixels.shape[2] in (3, 4) else 1].astype(np.int64)
    if colour.shape[2] == 1 or bool((colour == colour[..., :1]).all()):
        # An RGBA file whose colours say nothing may be drawn in its alpha.
        one = colour[..., 0]
        alpha = pixels[..., 3] if pixels.shape[2] == 4 else one
        return alpha if len(np.unique(one[::8, ::8])) == 1 else one
    return (colour[..., 0] << 40) + (colour[..., 1] << 20) + colour[..., 2]


def _surely_many(path: Path, head: Header) -> bool:
    """Return whether the first bytes are those of grey levels; False means it is not known."""
    pixels = head.height * head.width
    stored = path.stat().st_size
    if head.kind == "png":
        if head.bits < 8:
            return False
        return stored > max(DENSE * pixels, START) or _png_noise(path, head)
    if head.kind == "jpeg":
        return stored > max(DENSE_JPEG * pixels, START) or _jpeg_many(path)
    if head.kind == "tiff":
        return _tiff_many(path, head)
    return False


def _png_noise(path: Path, head: Header) -> bool:
    """Return whether the first rows of a PNG are noise.

    Before they are decoded, rows are differences to their neighbours: 0 in the areas of a mask.
    """
    with open(path, "rb") as file:
        data = file.read(2 * START)
    if data[25:26] == b"\x03" or data[28:29] == b"\x01":
        return False
    packed, place = b"", 8
    while place + 8 < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += 12 + length
    try:
        raw = zlib.decompressobj().decompress(packed, 2 * START)
    except zlib.error:
        return False
    row = 1 + head.width * head.channels * (head.bits // 8)
    rows = np.frombuffer(raw[: len(raw) // row * row], np.uint8).reshape(-1, row)
    return rows.size > 2000 and _noisy(rows[:, 1:])


def _noisy(raw: Array) -> bool:
    """Return whether bytes of rows are no areas: many values, few of them like the one before."""
    if len(np.unique(raw)) <= 2 * FEW:
        return False
    return bool((raw[:, 1:] == raw[:, :-1]).mean() < 0.35 and (raw == 0).mean() < 0.35)


def _jpeg_many(path: Path) -> bool:
    """Return whether a JPEG of an eighth of the size has neither flat areas nor heaps."""
    import cv2

    data = np.fromfile(path, np.uint8)
    small, _ = reported(lambda: cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8))
    if small is None or small.size < 256:
        return False
    counts = np.sort(np.bincount(small.ravel(), minlength=256))[::-1]
    return bool(counts[: 4 * (2 * SOFT + 1)].sum() < 0.6 * small.size)


def _tiff_many(path: Path, head: Header) -> bool:
    """Return whether the first stored rows in the middle of a TIFF are noise."""
    import tifffile

    if head.bits not in (8, 16):
        return False
    try:
        with listening(), tifffile.TiffFile(path) as file:
            page = file.pages[0]
            packed = int(page.compression) != 1
            offsets, lengths = page.dataoffsets, page.databytecounts
            order = file.byteorder
    except Exception:
        # Whoever reads the whole file says what is wrong with it.
        return False
    if not lengths or int(getattr(page, "photometric", 1)) == 3:
        return False
    if packed:
        return sum(lengths) > max(DENSE * head.height * head.width, START)
    middle = len(lengths) // 2
    place = offsets[middle] + (lengths[middle] // 2 if len(lengths) == 1 else 0)
    with open(path, "rb") as stream:
        stream.seek(place // 2 * 2)
        data = stream.read(min(START, lengths[middle]) // 2 * 2)
    raw = np.frombuffer(data, f"{order}u{head.bits // 8}").astype(np.int64)
    return raw.size > 2000 and _noisy(raw[: raw.size // 8 * 8].reshape(1, -1))


def _is_float(path: Path) -> bool:
    try:
        readers.read(path)
    except UserError:
        return False
    return True
