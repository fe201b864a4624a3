"""PNG, JPEG, BMP, PGM and WebP files: decoded by OpenCV, upright, and never damaged in silence."""

from __future__ import annotations

import os
import struct
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, strips
from matssl.core.errors import UserError
from matssl.data.readers import orientation
from matssl.data.readers.headers import first_line

Result = TypeVar("Result")
Bytes = NDArray[np.uint8]

# Larger files are mapped instead of read: their bytes then need no memory of their own.
MAPPED_BYTES = 1 << 26
# The parts of a PNG that its pixels are made of; others only make the library print.
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# What libjpeg says of data that it had to guess; the pixels behind them are grey or shifted.
GUESSED = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
# Many cameras write a few bytes too many after the last pixel.
HARMLESS = "extraneous bytes before marker 0xd9"
REMARKS = ("Unknown Adobe", "Warning: unknown JFIF", "Invalid SOS", "Application transferred")
LIBPNG = ("libpng error: ", "libpng warning: ")
# OpenCV's own bound on the pixels of a picture.
LARGEST = 1 << 30

_capturing = threading.Lock()


@dataclass(frozen=True)
class Raster:
    """Pixels of a file.

    Attributes:
        pixels: (H, W) or (H, W, C) in R, G, B, A order, upright.
        orientation: as the file stores them, see :mod:`matssl.data.readers.orientation`.
        notes: what was noticed, in words.
    """

    pixels: Array
    orientation: int = orientation.UPRIGHT
    notes: tuple[str, ...] = ()


def decoded(path: Path, kind: str, indices: bool = False) -> Raster:
    """Return the pixels of a file.

    Args:
        path: of the file.
        kind: png, jpeg, bmp, ppm or webp.
        indices: numbers of the palette instead of its colours where a PNG has one; 0 and 1 for
            1-bit pictures.

    Raises:
        UserError: damaged, cut off or too large; the file is named.
    """
    data = _bytes(path)
    turned = orientation.UPRIGHT
    if kind == "png":
        data, exif = _png(path, data)
        turned = orientation.exif_orientation(exif)
        if indices and _has_indices(data):
            return Raster(orientation.upright(_indices(path), turned), turned)
    elif kind == "jpeg":
        turned = orientation.exif_orientation(_jpeg_exif(data))
    elif kind == "webp":
        turned = orientation.exif_orientation(_webp_exif(data))
    pixels, notes = _opencv(path, data, kind)
    return Raster(orientation.upright(pixels, turned), turned, notes)


def _bytes(path: Path) -> Bytes:
    try:
        if path.stat().st_size > MAPPED_BYTES:
            # A plain view: whether it is mapped is nobody's concern.
            return np.asarray(np.memmap(path, np.uint8, "r"))
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _opencv(path: Path, data: Bytes, kind: str) -> tuple[Array, tuple[str, ...]]:
    import cv2

    # What it would print beside our sentence is in our sentence.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        pixels, told = reported(lambda: cv2.imdecode(data, cv2.IMREAD_UNCHANGED))
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in str(error):
            raise UserError(
                f"{path} has more than {LARGEST / 1e9:.1f} billion pixels, which only TIFF files "
                "may have here; save it as TIFF"
            ) from error
        raise UserError(f"{path} is broken: {first_line(error)}") from error
    if pixels is None:
        why = told[0].removeprefix(LIBPNG[0]) if told else "it could not be decoded"
        raise UserError(f"{path} is broken: {why}")
    notes = _judged(path, told, kind)
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        # OpenCV's order is B, G, R(, A).
        code = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
        for rows in strips(len(pixels)):
            # In its place: a large picture needs no second one beside it.
            pixels[rows] = cv2.cvtColor(pixels[rows], code)
    return np.asarray(pixels), notes


def reported(decode: Callable[[], Result]) -> tuple[Result, list[str]]:
    """Return what a call gives and what a C library printed to the error stream meanwhile.

    libjpeg and libpng tell of damaged data there and nowhere else. What others print in that moment
    is printed afterwards. One picture is decoded at a time; most of reading it is done elsewhere.
    """
    with _capturing:
        try:
            kept = os.dup(2)
        except OSError:
            # There is no error stream.
            return decode(), []
        try:
            with tempfile.TemporaryFile() as catch:
                os.dup2(catch.fileno(), 2)
                try:
                    result = decode()
                finally:
                    os.dup2(kept, 2)
                catch.seek(0)
                lines = catch.read().decode("utf-8", "replace").splitlines(keepends=True)
        finally:
            os.close(kept)
        told = [line for line in lines if line.startswith((*GUESSED, *REMARKS, *LIBPNG))]
        rest = "".join(line for line in lines if line not in told)
        if rest:
            os.write(2, rest.encode())
        return result, [line.strip() for line in told]


def _judged(path: Path, told: list[str], kind: str) -> tuple[str, ...]:
    """Return what the library said where the pixels may still be right.

    Raises:
        UserError: it had to guess pixels.
    """
    for line in told:
        if line.startswith(GUESSED) and HARMLESS not in line:
            raise UserError(f"{path} is damaged: {line}; get a whole copy of it")
    lines = dict.fromkeys(line.removeprefix(LIBPNG[1])[:160] for line in told)
    return tuple(f"the {kind.upper()} library says: {line}" for line in lines)


def _png(path: Path, data: Bytes) -> tuple[Bytes, bytes]:
    """Return a PNG file without what is not pixels, and its EXIF block.

    Raises:
        UserError: it is cut off, or a checksum of what its pixels are made of does not fit.
    """
    exif, wanted, kept = b"", [data[:8]], 8
    for name, start, stop in _chunks(path, data):
        whole = data[start:stop]
        if start == 8 and name != b"IHDR":
            raise UserError(f"{path} is broken: it has no header")
        if name in PIXEL_CHUNKS:
            wanted.append(whole)
            kept = stop
            (stored,) = struct.unpack(">I", bytes(whole[-4:]))
            if zlib.crc32(whole[4:-4].data) != stored:
                raise UserError(
                    f"{path} is damaged: the checksum of its part {name.decode()} does not fit; "
                    "get a whole copy of it"
                )
        elif name == b"eXIf":
            exif = bytes(whole[8:-4])
    whole_length = sum(len(part) for part in wanted)
    # Nothing to leave out, nothing to copy.
    return (data[:kept] if kept == whole_length else np.concatenate(wanted)), exif


def _chunks(path: Path, data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of the parts of a PNG file, up to and with the last."""
    place = 8
    while place + 12 <= len(data):
        length, name = struct.unpack(">I4s", bytes(data[place : place + 8]))
        stop = place + 12 + length
        if stop > len(data):
            break
        yield name, place, stop
        if name == b"IEND":
            return
        place = stop
    raise UserError(f"{path} is broken: it is cut off")


def _has_indices(data: Bytes) -> bool:
    bits, colour = int(data[24]), int(data[25])
    return colour == 3 or (colour == 0 and bits == 1)


def _indices(path: Path) -> Array:
    """Return the numbers that a palette or 1-bit PNG holds; OpenCV would give colours."""
    from PIL import PngImagePlugin

    try:
        # The plugin itself: Image.open refuses what has more than 178 million pixels.
        with PngImagePlugin.PngImageFile(path) as image:
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is broken: {first_line(error)}") from error
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.uint8)


def _jpeg_exif(data: Bytes) -> bytes:
    """Return the EXIF block in front of a JPEG picture; empty where there is none."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = int(data[place + 1])
        if marker == 0xFF:
            place += 1
            continue
        if marker in (0xD9, 0xDA):
            break
        length = 256 * int(data[place + 2]) + int(data[place + 3])
        block = data[place + 4 : place + 2 + length]
        if marker == 0xE1 and bytes(block[:6]) == b"Exif\0\0":
            return bytes(block)
        place += 2 + length
    return b""


def _webp_exif(data: Bytes) -> bytes:
    """Return the EXIF block of a WebP file; empty where there is none."""
    place = 12
    while place + 8 <= len(data):
        name, length = struct.unpack("<4sI", bytes(data[place : place + 8]))
        if name == b"EXIF":
            return bytes(data[place + 8 : place + 8 + length])
        # Parts have even lengths.
        place += 8 + length + length % 2
    return b""
