"""Image files as they are: native bits, one plane or three, no grey level changed.

TIFF by tifffile, PNG, JPEG and BMP by OpenCV. What a file is, its first bytes decide and not its
name (PNG files named .tiff are common).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.readers.calibration import Calibration, of_sidecar, of_tiff

EXTENSIONS = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
# A header may promise more than its file can hold: no codec here shrinks 1 : 2000.
MAX_EXPANSION = 2000
MAX_SIDE = 65_500
# Luminance weights of ITU-R BT.601, those of every grey conversion in use.
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Micrograph:
    """One image as its file holds it.

    Attributes:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
        pixel_size: side of a pixel in ``unit``; None where unknown.
        unit: "nm" where the pixel size is known, else None.
        bits: significant bits; 12 for 12-bit data in a 16-bit file, 32 for float.
        source: path of the file.
        bar_height: rows of the information bar that the metadata names; None where unknown.
        notes: what was noticed while reading, in words.
    """

    pixels: Array
    pixel_size: float | None
    unit: str | None
    bits: int
    source: str
    bar_height: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """What a file promises before it is decoded."""

    kind: str
    height: int
    width: int
    channels: int
    bits: int


def find_images(folder: Path | str) -> list[Path]:
    """Return all image files below ``folder``, in natural order of their relative paths.

    Hidden files, resource forks and files of other kinds are left out; links that lead in a
    circle are followed once.

    Raises:
        UserError: the folder does not exist, is no folder, or holds no image.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"there is no folder {root}")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds the images")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(place) / name for name in files if is_image_name(name)]
    if not found:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"there is no image in {root} (looked for {kinds}, also in sub-folders)")
    return sorted(found, key=lambda path: natural(str(path.relative_to(root))))


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return not name.startswith((".", "_.")) and Path(name).suffix.lower() in EXTENSIONS


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sorting key in which image 2 comes before image 10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts]


def read(path: Path | str, *, page: int = 0, color: str = "gray") -> Micrograph:
    """Return the micrograph in a file.

    Args:
        path: TIFF, PNG, JPEG or BMP.
        page: page of a multi-page TIFF.
        color: "gray" makes real colour luminance; "rgb" keeps three channels where they differ.

    Raises:
        UserError: missing, empty, broken, or a header that cannot be true; the file is named.
    """
    path = Path(path)
    head = header(path)
    calibration = Calibration()
    notes: list[str] = []
    if head.kind == "tiff":
        pixels, calibration, pages = _read_tiff(path, page)
        if pages > 1:
            notes.append(f"page {page + 1} of {pages} is read")
    else:
        pixels = _read_opencv(path)
    if calibration == Calibration():
        calibration = of_sidecar(path, *pixels.shape[:2])
    pixels, remarks = _plane(pixels, color, path)
    bits = _significant_bits(pixels)
    size = calibration.pixel_size
    return Micrograph(
        pixels=pixels,
        pixel_size=size,
        unit=None if size is None else "nm",
        bits=bits,
        source=str(path),
        bar_height=calibration.bar_height,
        notes=(*notes, *remarks, *calibration.notes),
    )


def from_array(
    pixels: Array, pixel_size: float | None = None, color: str = "gray", source: str = "array"
) -> Micrograph:
    """Return the micrograph of an array in memory, its dtype as :func:`read` would give it.

    Args:
        pixels: (H, W), (H, W, 1), or (H, W, 3) in R, G, B order; a fourth channel is dropped.
        pixel_size: nm.
        color: see :func:`read`.
        source: what messages call it.

    Raises:
        UserError: another shape, or no finite value.
    """
    if pixels.ndim not in (2, 3) or pixels.size == 0:
        raise UserError(f"{source} has the shape {pixels.shape}; a micrograph has (H, W) pixels")
    plane, notes = _plane(pixels, color, source)
    bits = _significant_bits(plane)
    unit = None if pixel_size is None else "nm"
    return Micrograph(plane, pixel_size, unit, bits, source, notes=tuple(notes))


def with_pixel_size(micrograph: Micrograph, nm: float | None) -> Micrograph:
    """Return the micrograph with the pixel size the user gave, where one was given."""
    return micrograph if nm is None else replace(micrograph, pixel_size=nm, unit="nm")


def read_mask(path: Path | str) -> Array:
    """Return the raw values of a mask file.

    Palette images give their indices, 1-bit images 0 and 1, signed integers keep their sign; colour
    and alpha come as (H, W, 3) or (H, W, 4) in R, G, B, A order.

    Raises:
        UserError: the file cannot be read as a mask; it is named.
    """
    path = Path(path)
    head = header(path)
    if head.kind == "tiff":
        mask = _read_tiff(path, 0)[0]
    elif head.kind == "png":
        # OpenCV turns palettes into colours; Pillow keeps the indices.
        mask = _read_palette_png(path)
    else:
        mask = _read_opencv(path)
    if mask.dtype.kind == "f":
        if not np.array_equal(mask, np.rint(mask)):
            raise UserError(f"{path} holds fractions; a mask holds one class number per pixel")
        mask = mask.astype(np.int64)
    if mask.dtype == np.bool_:
        mask = mask.astype(np.uint8)
    if mask.ndim == 3 and mask.shape[2] in (1, 2):
        mask = mask[..., 0]
    return mask


def header(path: Path | str) -> Header:
    """Return kind, size and bits from the first bytes of a file, without decoding it.

    Raises:
        UserError: missing, empty, of no known kind, or promising more than the file can hold.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(1 << 16)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if size == 0:
        raise UserError(f"{path} is empty")
    try:
        head = _header(path, start)
    except UserError:
        raise
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{path} is broken: {_first_line(error)}") from error
    _check_promise(path, head, size)
    return head


def _header(path: Path, start: bytes) -> Header:
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff_header(path)
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
        return _other_header(path)
    raise UserError(f"{path} is no TIFF, PNG, JPEG, BMP, PGM or WebP file, or is cut off")


def _other_header(path: Path) -> Header:
    """Read what a PGM, PPM or WebP file says of itself."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            channels = len(image.getbands())
            kind = str(image.format).lower()
            return Header(kind, image.height, image.width, channels, 16 if "I" in image.mode else 8)
    except (UnidentifiedImageError, OSError, ValueError) as error:
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
        if place + 9 >= len(data) and len(data) == 1 << 16:
            # Long metadata stands before the frame header.
            data = path.read_bytes()
    raise UserError(f"{path} is a JPEG file that is cut off")


def _tiff_header(path: Path) -> Header:
    import tifffile

    with _quiet(), tifffile.TiffFile(path) as file:
        page = file.pages[0]
        shape = page.shape
        channels = page.samplesperpixel
        height, width = page.imagelength, page.imagewidth
        if len(shape) < 2:
            raise UserError(f"{path} holds no image")
        return Header("tiff", height, width, channels, int(page.bitspersample))


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


def _read_tiff(path: Path, page: int) -> tuple[Array, Calibration, int]:
    import tifffile

    try:
        with _quiet(), tifffile.TiffFile(path) as file:
            count = len(file.pages)
            if page >= count:
                raise UserError(f"{path} has {count} pages; page {page + 1} was asked for")
            chosen = file.pages[page]
            pixels = chosen.asarray()
            calibration = of_tiff(file, *pixels.shape[:2])
    except UserError:
        raise
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{path} is broken: {_first_line(error)}") from error
    if pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim not in (2, 3):
        raise UserError(f"{path} has {pixels.ndim} dimensions; a micrograph has two")
    photometric = getattr(chosen, "photometric", None)
    if pixels.dtype.kind == "u" and photometric is not None and photometric.name == "MINISWHITE":
        pixels = np.iinfo(pixels.dtype).max - pixels
    return pixels, calibration, count


def _read_opencv(path: Path) -> Array:
    import cv2

    try:
        data = np.fromfile(path, dtype=np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise UserError(f"{path} is broken: {_first_line(error)}") from error
    if pixels is None:
        raise UserError(f"{path} is broken: it could not be decoded")
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        # OpenCV's order is B, G, R(, A).
        order = [2, 1, 0, 3][: pixels.shape[2]]
        pixels = np.ascontiguousarray(pixels[..., order])
    return np.asarray(pixels)


def _read_palette_png(path: Path) -> Array:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode in ("P", "1"):
                return np.asarray(image).astype(np.uint8)
    except OSError as error:
        raise UserError(f"{path} is broken: {_first_line(error)}") from error
    return _read_opencv(path)


def _plane(pixels: Array, color: str, path: Path | str) -> tuple[Array, list[str]]:
    """Return (H, W) or (H, W, 3) of a dtype we promise, and what was done, in words."""
    notes = []
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        notes.append("alpha channel dropped")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise UserError(f"{path} has {pixels.shape[2]} channels; a micrograph has one or three")
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype == np.int8 or pixels.dtype == np.int16:
        offset = np.iinfo(pixels.dtype).min
        wide = pixels.astype(np.int32) - (offset if pixels.min() < 0 else 0)
        pixels = wide.astype(np.uint8 if pixels.dtype == np.int8 else np.uint16)
    elif pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2:
        if 0 <= pixels.min() and pixels.max() <= 65_535:
            pixels = pixels.astype(np.uint16)
        else:
            pixels = pixels.astype(np.float32)
    elif pixels.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
        bad = ~np.isfinite(pixels)
        if bad.all():
            raise UserError(f"{path} holds no finite value")
        if bad.any():
            notes.append(f"{int(bad.sum())} non-finite pixels take the smallest value")
            pixels = np.where(bad, pixels[~bad].min(), pixels)
    if pixels.ndim == 3:
        first = pixels[..., :1]
        if (pixels == first).all():
            pixels = pixels[..., 0]
        elif color == "gray":
            notes.append("colour becomes luminance")
            gray = pixels.astype(np.float32) @ LUMINANCE.astype(np.float32)
            rounded = np.rint(gray) if pixels.dtype.kind == "u" else gray
            pixels = rounded.astype(pixels.dtype)
    return np.ascontiguousarray(pixels), notes


def _significant_bits(pixels: Array) -> int:
    if pixels.dtype == np.uint8:
        return 8
    if pixels.dtype == np.float32:
        return 32
    highest = int(pixels.max(initial=0))
    for bits in (8, 10, 12, 14):
        if highest < 1 << bits:
            return bits
    return 16


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


class _quiet:
    """Silence tifffile's log lines: what matters of them ends in our own sentence."""

    def __enter__(self) -> None:
        self.logger = logging.getLogger("tifffile")
        self.level = self.logger.level
        self.logger.setLevel(logging.CRITICAL)
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.caught.__exit__(kind, error, trace)
        self.logger.setLevel(self.level)


def digest(*arrays: Array) -> str:
    """Return the SHA-256 of arrays: tells pixels from others, whatever their file is called."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
