"""What the numbers of a TIFF page mean as grey or colour: TIFF 6.0, sections 3 to 6, 16 and 21."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array, roomy, strips
from matssl.core.errors import UserError
from matssl.data.readers.planes import significant

if TYPE_CHECKING:
    from tifffile import TiffPage

# Compressions that hold a JPEG, whose decoder gives R, G, B (old JPEG, JPEG, its older number).
JPEG_KINDS = frozenset({6, 7, 33007})
CMYK_INKS = 1
# ITU-R BT.601: red, green and blue in the luminance; section 21.
LUMA = (0.299, 0.587, 0.114)
FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


@dataclass(frozen=True)
class Facts:
    """How the numbers of a page are meant.

    Attributes:
        kind: name of the photometric interpretation: MINISBLACK, MINISWHITE, RGB, PALETTE, ...
        bits: of a sample, as the file says.
        imagej: whether ImageJ wrote the file: its tables are for the screen, values count.
        colours: uint16 (3, N) of a palette, None without one.
        jpeg: whether a JPEG decoder has made R, G, B of the numbers.
        inks: what the channels of a print are; 1 for cyan, magenta, yellow, black.
        luma: shares of red, green and blue in the luminance of YCbCr.
        reference: black and white of Y, Cb and Cr.
    """

    kind: str
    bits: int
    imagej: bool = False
    colours: NDArray[np.uint16] | None = field(default=None, repr=False)
    jpeg: bool = False
    inks: int = CMYK_INKS
    luma: tuple[float, ...] = LUMA
    reference: tuple[float, ...] = FULL_RANGE


def facts(page: TiffPage, imagej: bool) -> Facts:
    """Return what the tags of a page say of its numbers."""
    bits = page.bitspersample
    return Facts(
        kind=str(getattr(page.photometric, "name", page.photometric)),
        bits=int(max(bits) if isinstance(bits, tuple) else bits),
        imagej=imagej,
        colours=page.colormap,
        jpeg=int(page.compression) in JPEG_KINDS,
        inks=_whole(page, 332, CMYK_INKS),
        luma=_rationals(page, 529, LUMA),
        reference=_rationals(page, 532, FULL_RANGE),
    )


def shown(pixels: Array, meant: Facts, path: Path) -> tuple[Array, list[str]]:
    """Return grey levels, or R, G, B, of what a page stores, and remarks.

    Args:
        pixels: (H, W) or (H, W, C), as stored.
        meant: see :class:`Facts`.
        path: what messages call it.

    Raises:
        UserError: a kind of colour that is not read; file and kind are named.
    """
    kind = meant.kind
    if kind in ("MINISBLACK", "RGB") or (kind == "YCBCR" and meant.jpeg):
        return _full_scale(pixels, meant), []
    convert = _CONVERSIONS.get(kind)
    if convert is None:
        raise UserError(
            f"{path} holds its picture as {kind}, which is not read; save it as grey or RGB"
        )
    try:
        return convert(pixels, meant), [_REMARKS[kind]]
    except _OtherKindError as other:
        raise UserError(f"{path} {other}; save it as grey or RGB") from other


def _full_scale(pixels: Array, meant: Facts) -> Array:
    """Return grey levels of less than 8 bits over the whole of 8, as PNG readers give them."""
    if pixels.dtype != np.uint8 or not 1 <= meant.bits < 8:
        return pixels
    table = np.rint(np.arange(256) * 255 / ((1 << meant.bits) - 1)).clip(0, 255)
    return table.astype(np.uint8)[pixels]


def _inverted(pixels: Array, meant: Facts) -> Array:
    """Return grey levels of a page whose 0 is white (section 3)."""
    kind = pixels.dtype.kind
    if kind == "b":
        return ~pixels
    if kind == "f":
        # White is 0 and black is 1, the full range of floating-point grey.
        return 1 - pixels
    if kind == "i":
        return ~pixels
    stated = meant.bits if meant.bits < 8 * pixels.dtype.itemsize else significant(pixels)
    inverted = (pixels.dtype.type((1 << stated) - 1) - pixels).astype(pixels.dtype, copy=False)
    return _full_scale(inverted, meant)


def _coloured(pixels: Array, meant: Facts) -> Array:
    """Return the colours of a palette's indices (section 5); one plane where all are grey."""
    colours = meant.colours
    if colours is None or colours.ndim != 2 or len(colours) != 3 or pixels.ndim != 2:
        raise _OtherKindError("has a palette that is damaged")
    used = np.unique(pixels)
    if pixels.dtype.kind != "u" or used[-1] >= colours.shape[1]:
        raise _OtherKindError("has numbers that its palette lacks")
    # Some writers fill 8 of the 16 bits; the others use the upper ones.
    table = (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)
    if (table[:, used] == table[0, used]).all():
        return table[0][pixels]
    return np.ascontiguousarray(table.T)[pixels]


def _printed(pixels: Array, meant: Facts) -> Array:
    """Return R, G, B of cyan, magenta, yellow and black (section 16): each ink takes its share."""
    if meant.inks != CMYK_INKS or pixels.ndim != 3 or pixels.shape[2] < 4:
        raise _OtherKindError("holds inks other than cyan, magenta, yellow and black")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise _OtherKindError(f"holds inks as {pixels.dtype.name}")
    full = np.float32(np.iinfo(pixels.dtype).max)

    def colours(rows: Array) -> Array:
        paper = full - rows[..., :4].astype(np.float32)
        return np.rint(paper[..., :3] * (paper[..., 3:] / full))

    return _by_rows(pixels, colours)


def _from_luminance(pixels: Array, meant: Facts) -> Array:
    """Return R, G, B of luminance and two colour differences (section 21)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] < 3:
        raise _OtherKindError("holds YCbCr of another form than three times 8 bits")
    red, green, blue = meant.luma
    black, white = meant.reference[0::2], meant.reference[1::2]
    spans = [w - b for b, w in zip(black, white, strict=True)]
    if min(red, green, blue) <= 0 or min(spans) <= 0:
        raise _OtherKindError("tells impossible YCbCr coefficients")

    def colours(rows: Array) -> Array:
        y, cb, cr = (
            (rows[..., i].astype(np.float32) - np.float32(black[i]))
            * np.float32((255 if i == 0 else 127) / spans[i])
            for i in range(3)
        )
        r = cr * np.float32(2 - 2 * red) + y
        b = cb * np.float32(2 - 2 * blue) + y
        g = (y - np.float32(blue) * b - np.float32(red) * r) / np.float32(green)
        return np.rint(np.stack([r, g, b], axis=-1)).clip(0, 255)

    return _by_rows(pixels, colours)


def _by_rows(pixels: Array, convert: Callable[[Array], Array]) -> Array:
    """Return (H, W, 3) of a conversion that is done a strip at a time."""
    result = roomy((*pixels.shape[:2], 3), pixels.dtype)
    for rows in strips(len(pixels)):
        result[rows] = convert(pixels[rows])
    return result


_CONVERSIONS: dict[str, Callable[[Array, Facts], Array]] = {
    "MINISWHITE": _inverted,
    "PALETTE": _coloured,
    "SEPARATED": _printed,
    "YCBCR": _from_luminance,
}
_REMARKS = {
    "MINISWHITE": "0 is white in the file: grey levels are turned, as a viewer shows them",
    "PALETTE": "the colours of the file's palette are read",
    "SEPARATED": "the inks of a print (CMYK) are read as colours",
    "YCBCR": "YCbCr is read as colours",
}


class _OtherKindError(Exception):
    """The page is another kind of colour than its tag lets expect; says which."""


def _whole(page: TiffPage, code: int, default: int) -> int:
    value = page.tags[code].value if code in page.tags else None
    return int(value) if isinstance(value, (int, np.integer)) else default


def _rationals(page: TiffPage, code: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return a tag's fractions; the default where there are not as many."""
    value: Any = page.tags[code].value if code in page.tags else ()
    if not isinstance(value, (tuple, list, np.ndarray)):
        return default
    numbers = [float(v) for v in value]
    if len(numbers) == 2 * len(default):
        tops, bottoms = numbers[0::2], numbers[1::2]
        numbers = [t / b if b else -1.0 for t, b in zip(tops, bottoms, strict=True)]
    return tuple(numbers) if len(numbers) == len(default) else default
