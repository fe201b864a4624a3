"""What a file promises before it is decoded: kind, size and bits, from its first bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.data.readers.files import size_of
from matssl.data.readers.pages import resolved

# A header may promise more than its file can hold: no codec here shrinks 1 : 2000.
MAX_EXPANSION = 2000
MAX_SIDE = 65_500
START_BYTES = 1 << 16


@dataclass(frozen=True)
class Header:
    """What a file promises before it is decoded."""

    kind: str
    height: int
    width: int
    channels: int
    bits: int


def header(path: Path | str, page: int | None = None) -> Header:
    """Return kind, size and bits from the first bytes of a file, without decoding it.

    Args:
        path: of the file, or of a page (:mod:`matssl.data.readers.pages`).
        page: of a TIFF file, counted from 0; None for the largest, deepest one.

    Raises:
        UserError: missing, empty, no file of bytes, of no known kind, or promising more than the
            file can hold.
    """
    path, own = resolved(path)
    page = page if own is None else own
    size = size_of(path)
    try:
        with open(path, "rb") as file:
            start = file.read(START_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        head = _header(path, start, page)
    except UserError:
        raise
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{path} is broken: {first_line(error)}") from error
    _check_promise(path, head, size)
    return head


def first_line(error: BaseException) -> str:
    """Return what an exception of a library says, short enough for a sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


def _header(path: Path, start: bytes, page: int | None) -> Header:
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        from matssl.data.readers import tiff

        height, width, channels, bits = tiff.promise(path, page)
        return Header("tiff", height, width, channels, bits)
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        width, height, bits, kind = struct.unpack(">IIBB", start[16:26])
        channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
        return Header("png", height, width, channels, bits)
    if start[:2] == b"BM":
        width, height = struct.unpack("<ii", start[18:26])
        depth = struct.unpack("<H", start[28:30])[0]
        return Header("bmp", abs(height), width, 3 if depth >= 24 else 1, 8)
    if start[:2] == b"\xff\xd8":
        return _jpeg_header(path, start)
    if start[:2] in (b"P5", b"P6") or start[:4] == b"RIFF":
        return _other_header(path, start)
    if start[:4] == b"GIF8":
        raise UserError(f"{path} is a GIF file, which matssl does not read: save it as PNG")
    raise UserError(f"{path} is no TIFF, PNG, JPEG, BMP, PGM or WebP file, or is cut off")


def _other_header(path: Path, start: bytes) -> Header:
    """Read what a PGM, PPM or WebP file says of itself."""
    from PIL import PpmImagePlugin, WebPImagePlugin

    # The plugins themselves: Image.open refuses what is large, and that is judged here.
    netpbm, webp = PpmImagePlugin.PpmImageFile, WebPImagePlugin.WebPImageFile
    try:
        with netpbm(path) if start[:1] == b"P" else webp(path) as image:
            channels = len(image.getbands())
            kind = str(image.format).lower()
            return Header(kind, image.height, image.width, channels, 16 if "I" in image.mode else 8)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is cut off or damaged") from error


def _jpeg_header(path: Path, start: bytes) -> Header:
    place = 2
    data = start
    while place + 9 < len(data):
        if data[place] != 0xFF:
            place += 1
            continue
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", data[place + 4 : place + 10])
            return Header("jpeg", height, width, channels, bits)
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:
            place += 1 if marker == 0xFF else 2
            continue
        place += 2 + struct.unpack(">H", data[place + 2 : place + 4])[0]
        if place + 9 >= len(data) and len(data) == START_BYTES:
            # Long metadata stands before the frame header.
            data = path.read_bytes()
    raise UserError(f"{path} is a JPEG file that is cut off")


def _check_promise(path: Path, head: Header, size: int) -> None:
    if head.height < 1 or head.width < 1:
        raise UserError(f"{path} says it is {head.width} x {head.height} pixels; it is broken")
    promised = head.height * head.width * head.channels * max(1, head.bits // 8)
    too_large = max(head.height, head.width) > MAX_SIDE
    if promised > max(1 << 22, size * MAX_EXPANSION) or (too_large and promised > 64 * size):
        raise UserError(
            f"{path} claims {head.width} x {head.height} pixels in a file of {size} bytes; "
            "it is broken and was not opened"
        )
