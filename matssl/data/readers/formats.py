"""Image files as they are: native bits, one plane or three, no grey level changed.

TIFF by tifffile, PNG, JPEG, BMP, PGM and WebP by OpenCV. What a file is, its first bytes decide and
not its name (PNG files named .tiff are common).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.readers import orientation, photometric, raster, tiff
from matssl.data.readers.calibration import Calibration, of_sidecar
from matssl.data.readers.headers import header
from matssl.data.readers.pages import resolved
from matssl.data.readers.planes import plane


@dataclass(frozen=True)
class Micrograph:
    """One image as its file holds it, upright.

    Attributes:
        pixels: (H, W) or (H, W, 3), uint8, uint16 or float32; (H, W, frames) where it holds
            several frames of a sequence, the earliest first.
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
        frames: of a sequence that the pixels hold; 1 for a single picture.
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
    frames: int = 1

    @property
    def middle(self) -> Micrograph:
        """The frame that the others are neighbours of; a single picture itself."""
        if self.frames == 1:
            return self
        return self.single[self.frames // 2]

    @property
    def single(self) -> tuple[Micrograph, ...]:
        """Each frame as a picture of its own."""
        if self.frames == 1:
            return (self,)
        return tuple(
            replace(self, pixels=np.ascontiguousarray(self.pixels[..., i]), frames=1)
            for i in range(self.frames)
        )


def read(path: Path | str, *, page: int | None = None, color: str = "gray") -> Micrograph:
    """Return the micrograph in a file.

    Args:
        path: TIFF, PNG, JPEG, BMP, PGM or WebP; or a page (:mod:`matssl.data.readers.pages`).
        page: page of a multi-page TIFF, counted from 0; None for the largest, of equal ones the
            deepest, of those the first.
        color: "gray" makes real colour luminance; "rgb" keeps three channels where they differ.

    Raises:
        UserError: missing, empty, broken, or a header that cannot be true; the file is named.
    """
    source = str(path)
    path, own = resolved(path)
    page = page if own is None else own
    head = header(path, page)
    told_bits = None
    if head.kind == "tiff":
        found = tiff.stored(path, page)
        pixels, notes = photometric.shown(found.pixels, found.facts, path)
        # Of a page that is a picture of its own, its name says which it is.
        notes = [*(found.notes if own is None else ()), *notes]
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
    pixels, bits, remarks = plane(pixels, color, source, told_bits)
    if turned != orientation.UPRIGHT:
        notes.append(f"turned upright, as its EXIF orientation {turned} says")
    size = calibration.pixel_size
    return Micrograph(
        pixels=pixels,
        pixel_size=size,
        unit=None if size is None else "nm",
        bits=bits,
        source=source,
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


def stacked(frames: Sequence[Micrograph]) -> Micrograph:
    """Return frames of a sequence as one micrograph, all else that of the middle one.

    Args:
        frames: grey pictures of one size and type, the earliest first.

    Raises:
        UserError: they differ.
    """
    middle = frames[len(frames) // 2]
    for one in frames:
        if one.pixels.shape != middle.pixels.shape or one.pixels.dtype != middle.pixels.dtype:
            raise UserError(
                f"{middle.source} and its neighbour {one.source} differ in size or type "
                f"({_kind(middle)}, {_kind(one)}); frames of a sequence are alike"
            )
    # The range of all: a dark frame does not tell the depth of its camera.
    bits = max(one.bits for one in frames)
    notes = tuple(dict.fromkeys(note for one in frames for note in one.notes))
    pixels = np.stack([one.pixels for one in frames], axis=2)
    return replace(middle, pixels=pixels, bits=bits, notes=notes, frames=len(frames))


def _kind(one: Micrograph) -> str:
    return f"{one.pixels.shape[1]} x {one.pixels.shape[0]} {one.pixels.dtype.name}"


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
