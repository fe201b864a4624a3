"""Image files as they are: native bits, one plane or three, no grey level changed.

TIFF by tifffile, PNG, JPEG, BMP, PGM and WebP by OpenCV. What a file is, its first bytes decide and
not its name (PNG files named .tiff are common).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.readers import orientation, photometric, raster, tiff
from matssl.data.readers.calibration import Calibration, of_sidecar
from matssl.data.readers.headers import header
from matssl.data.readers.planes import plane


@dataclass(frozen=True)
class Micrograph:
    """One image as its file holds it, upright.

    Attributes:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32.
        pixel_size: side of a pixel in ``unit``; of pixels that are not square, the side of the
            square of the same area. None where unknown.
        unit: "nm" where the pixel size is known, else None.
        bits: significant bits; 12 for 12-bit data in a 16-bit file, 32 for float.
        source: path of the file.
        bar_height: rows of the information bar that the metadata names; None where unknown.
        notes: what was noticed while reading, in words.
        calibration: who says the pixel size, in a word or two; "" where it is unknown.
        turned: the EXIF orientation in which the file stores it, 1 where it is stored upright.
        aspect: height of a pixel over its width.
    """

    pixels: Array
    pixel_size: float | None
    unit: str | None
    bits: int
    source: str
    bar_height: int | None = None
    notes: tuple[str, ...] = ()
    turned: int = orientation.UPRIGHT
    calibration: str = ""
    aspect: float = 1.0


def read(path: Path | str, *, page: int | None = None, color: str = "gray") -> Micrograph:
    """Return the micrograph in a file.

    Args:
        path: TIFF, PNG, JPEG, BMP, PGM or WebP.
        page: page of a multi-page TIFF, counted from 0; None for the largest, of equal ones the
            deepest, of those the first.
        color: "gray" makes real colour luminance; "rgb" keeps three channels where they differ.

    Raises:
        UserError: missing, empty, broken, or a header that cannot be true; the file is named.
    """
    path = Path(path)
    head = header(path, page)
    told_bits = None
    if head.kind == "tiff":
        found = tiff.stored(path, page)
        pixels, notes = photometric.shown(found.pixels, found.facts, path)
        notes = [*found.notes, *notes]
        calibration, turned, told_bits = found.calibration, found.orientation, found.facts.bits
    else:
        if page:
            raise UserError(f"{path} has 1 page; page {page + 1} was asked for (--page)")
        decoded = raster.decoded(path, head.kind)
        pixels, notes, turned = decoded.pixels, list(decoded.notes), decoded.orientation
        calibration = Calibration()
    if not calibration.known:
        beside = of_sidecar(path, *_stored_shape(pixels, turned))
        calibration = replace(beside, notes=(*calibration.notes, *beside.notes))
    pixels, bits, remarks = plane(pixels, color, path, told_bits)
    if turned != orientation.UPRIGHT:
        notes.append(f"turned upright, as its EXIF orientation {turned} says")
    size = calibration.pixel_size
    return Micrograph(
        pixels=pixels,
        pixel_size=size,
        unit=None if size is None else "nm",
        bits=bits,
        source=str(path),
        # A bar lies below the picture as the microscope wrote it.
        bar_height=calibration.bar_height if turned == orientation.UPRIGHT else None,
        notes=(*notes, *remarks, *calibration.notes),
        turned=turned,
        calibration="" if size is None else calibration.source,
        # From 5 on the picture lies on its side.
        aspect=calibration.aspect if turned < 5 else 1 / calibration.aspect,
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
    flat, bits, notes = plane(pixels, color, source)
    unit = None if pixel_size is None else "nm"
    return Micrograph(flat, pixel_size, unit, bits, source, notes=tuple(notes))


def with_pixel_size(
    micrograph: Micrograph, nm: float | None, calibration: str = "--pixel_size"
) -> Micrograph:
    """Return the micrograph with the pixel size the user gave, where one was given.

    One number says that pixels are square.

    Args:
        micrograph: as it was read.
        nm: side of a pixel.
        calibration: where the user said it.
    """
    if nm is None:
        return micrograph
    return replace(micrograph, pixel_size=nm, unit="nm", calibration=calibration, aspect=1.0)


def digest(*arrays: Array) -> str:
    """Return the SHA-256 of arrays: tells pixels from others, whatever their file is called."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _stored_shape(pixels: Array, turned: int) -> tuple[int, int]:
    """Return rows and columns of the file."""
    height, width = pixels.shape[:2]
    return (width, height) if orientation.on_its_side(turned) else (height, width)
