"""Mask files as they are: class numbers, grey values or colours, with what a viewer would show.

Pictures are turned into grey levels; a mask must not be. Two things beside its numbers matter: the
palette, since programs number the same colours differently, and which end of the scale is white.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array
from matssl.core.errors import UserError
from matssl.data.readers import photometric, raster, tiff
from matssl.data.readers.headers import header
from matssl.data.readers.pages import resolved

# Colour type of PNG files with a palette.
PALETTE = 3
# Objects of 32 bits are numbered up to here.
HIGHEST = (1 << 32) - 1
# Numbers below are class numbers; nobody tells shades of them apart on a screen.
MOST_CLASSES = 64
STORED_OF_IMAGEJ = (
    "an ImageJ picture with an inverting table (WhiteIsZero): the stored values count, so 255 is "
    "the foreground although it is shown black"
)
SHOWN = "WhiteIsZero: the values that are shown count, white is the highest"
# Its own choice for arrays of bool, which nobody asked for.
SHOWN_OF_TIFFFILE = (
    "1-bit pictures of Python's tifffile, WhiteIsZero: the values that are shown count, so True is "
    "black and background; photometric='minisblack' writes it white"
)
STORED_NUMBERS = "WhiteIsZero with class numbers: the stored numbers count"


class RawMask(np.ndarray):
    """Values of a mask file that know what else the file says.

    Attributes:
        palette: (N, 3) uint8, the colours of the values; None where the file has no palette, or
            one that only turns the grey scale around.
        remark: what was taken for what, in words; empty where there was no choice.
        lossy: whether the file is a JPEG, which changes values.
        one_bit: whether the format has one bit a pixel, so that 1 is white.
    """

    palette: NDArray[np.uint8] | None
    remark: str
    lossy: bool
    one_bit: bool

    def __new__(
        cls,
        values: Array,
        palette: NDArray[np.uint8] | None = None,
        remark: str = "",
        lossy: bool = False,
        one_bit: bool = False,
    ) -> RawMask:
        """Return the values with what belongs to them."""
        mask = np.asarray(values).view(cls)
        mask.palette, mask.remark = palette, remark
        mask.lossy, mask.one_bit = lossy, one_bit
        return mask

    def __array_finalize__(self, other: Any) -> None:
        """Keep it in parts and copies of the mask."""
        self.palette = getattr(other, "palette", None)
        self.remark = getattr(other, "remark", "")
        self.lossy = getattr(other, "lossy", False)
        self.one_bit = getattr(other, "one_bit", False)


def read_mask(path: Path | str) -> Array:
    """Return the raw values of a mask file, upright, as a :class:`RawMask`.

    Palette images give their indices (the palette comes with them), 1-bit images 0 and 1, signed
    integers keep their sign; colour and alpha come as (H, W, 3) or (H, W, 4) in R, G, B, A order,
    grey and alpha as (H, W, 2). Where a TIFF file says that white is zero, ImageJ's stored values
    are given (its inverting tables change only what is shown), and the shown ones of others.

    Raises:
        UserError: the file cannot be read as a mask; it is named.
    """
    path, page = resolved(path)
    head = header(path, page)
    palette: NDArray[np.uint8] | None = None
    notes: list[str] = []
    if head.kind == "tiff":
        mask, palette, notes = _tiff(path, page)
    else:
        mask = raster.decoded(path, head.kind, indices=True).pixels
        if head.kind == "png":
            palette = _png_palette(path)
    if mask.dtype.kind == "f":
        wide = mask.astype(np.float64)
        with np.errstate(invalid="ignore"):
            # NaN differs from itself; beyond 2^53 a double no longer counts by one.
            whole = np.array_equal(wide, np.rint(wide)) and np.abs(wide).max() <= 2**53
        if np.isnan(wide).any():
            raise UserError(
                f"{path} holds NaN; a mask holds one whole number per pixel, 255 or a negative one "
                "where nothing is labelled"
            )
        if not whole:
            raise UserError(f"{path} holds fractions; a mask holds one class number per pixel")
        mask = wide.astype(np.int64)
    if mask.dtype == np.bool_:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind not in "iu":
        raise UserError(f"{path} holds {mask.dtype.name} numbers; a mask holds whole ones")
    if mask.dtype.itemsize > 4 and max(int(mask.max()), -int(mask.min())) > HIGHEST:
        raise UserError(f"{path} holds numbers up to {int(mask.max())}; these are no class numbers")
    # Big-endian numbers become the machine's own.
    mask = mask.astype(mask.dtype.newbyteorder("="), copy=False)
    if mask.ndim == 3 and mask.shape[2] == 1:
        mask = mask[..., 0]
    if mask.ndim == 3 and mask.shape[2] > 4:
        raise UserError(f"{path} has {mask.shape[2]} channels; a mask has up to four")
    if palette is not None and (mask.ndim != 2 or _is_ramp(palette)):
        palette = None
    one_bit = head.bits == 1 and palette is None
    return RawMask(mask, palette, "; ".join(notes), head.kind == "jpeg", one_bit)


def _tiff(path: Path, page: int | None) -> tuple[Array, NDArray[np.uint8] | None, list[str]]:
    """Return values, palette and remarks of a page of a TIFF file."""
    found = tiff.stored(path, page)
    # Which page of a stack it is says its name.
    notes = list(found.notes) if page is None else []
    mask, facts = found.pixels, found.facts
    if facts.kind == "MINISWHITE" and mask.ndim == 2 and mask.dtype.kind in "bu":
        mask, remark = _shown(mask, facts.bits, facts.imagej)
        unasked = remark == SHOWN and facts.bits == 1 and _is_of_tifffile(path)
        notes.append(SHOWN_OF_TIFFFILE if unasked else remark)
    elif facts.kind not in ("MINISWHITE", "MINISBLACK", "RGB", "PALETTE"):
        mask, remarks = photometric.shown(mask, facts, path)
        notes += remarks
    colors = facts.colours if facts.kind == "PALETTE" else None
    if colors is None or colors.ndim != 2 or len(colors) != 3:
        return mask, None, notes
    # Some programs write 8-bit colours where 16 bits are meant.
    return mask, (colors if colors.max() < 256 else colors >> 8).T.astype(np.uint8), notes


def _is_of_tifffile(path: Path) -> bool:
    """Whether Python's tifffile wrote the file as it does where nothing is said of white."""
    import tifffile

    with tiff.listening(), tifffile.TiffFile(path) as file:
        return bool(file.is_shaped)


def _shown(mask: Array, bits: int, imagej: bool) -> tuple[Array, str]:
    """Return the values that count where zero is said to be white."""
    if imagej:
        return mask, STORED_OF_IMAGEJ
    if mask.dtype == np.bool_:
        return ~mask, SHOWN
    if bits >= 8 and 0 < int(mask.max()) < MOST_CLASSES:
        return mask, STORED_NUMBERS
    return ((1 << bits) - 1 - mask.astype(np.int64)).astype(mask.dtype), SHOWN


def _png_palette(path: Path) -> NDArray[np.uint8] | None:
    """Return the palette of a PNG file; None where it has none."""
    with open(path, "rb") as file:
        start = file.read(33)
        if len(start) < 33 or start[25] != PALETTE:
            return None
        while True:
            head = file.read(8)
            if len(head) < 8:
                return None
            length, name = struct.unpack(">I4s", head)
            if name == b"PLTE":
                data = file.read(length)
                return np.frombuffer(data[: len(data) // 3 * 3], np.uint8).reshape(-1, 3)
            if name == b"IDAT":
                return None
            file.seek(length + 4, 1)


def _is_ramp(palette: NDArray[np.uint8]) -> bool:
    """Whether a palette is the grey scale itself, or upside down: ImageJ's inverting table."""
    size = len(palette)
    if size < 3 or (palette != palette[:, :1]).any():
        return False
    steps = np.diff(palette[:, 0].astype(int))
    return size == 256 and abs(int(steps[0])) == 1 and bool((steps == steps[0]).all())
