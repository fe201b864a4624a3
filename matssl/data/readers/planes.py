"""From stored numbers to a plane: one channel or three, uint8, uint16 or float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from matssl.core.arrays import Array, roomy, strips
from matssl.core.errors import UserError

# Luminance weights of ITU-R BT.601, those of every grey conversion in use.
LUMINANCE = np.array([0.299, 0.587, 0.114])
# ``bits`` of floating-point pixels; whole numbers that need as many say one more.
FLOAT_BITS = 32


def plane(
    pixels: Array, color: str, path: Path | str, told_bits: int | None = None
) -> tuple[Array, int, list[str]]:
    """Return (H, W) or (H, W, 3) of a dtype we promise, its significant bits, and remarks.

    Grey levels keep their values: no offset, whatever else the file holds.

    Args:
        pixels: (H, W) or (H, W, C); an even last channel is alpha.
        color: "gray" makes real colour luminance; "rgb" keeps three channels where they differ.
        path: what messages call it.
        told_bits: what the file says of its bits, where it says it.

    Raises:
        UserError: another number of channels, no real numbers, or none that is finite.
    """
    notes = []
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        notes.append("alpha channel dropped")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise UserError(f"{path} has {pixels.shape[2]} channels; a micrograph has one or three")
    pixels, bits = _promised(pixels, path, notes)
    if pixels.ndim == 3:
        pixels = _fewer_channels(pixels, color, notes)
    if not pixels.flags.c_contiguous:
        apart, pixels = pixels, roomy(pixels.shape, pixels.dtype)
        pixels[...] = apart
    if bits is None:
        bits = _significant_bits(pixels)
        if told_bits is not None and pixels.dtype == np.uint16 and 8 < told_bits < 16:
            bits = max(bits, told_bits)
    return pixels, bits, notes


def _promised(pixels: Array, path: Path | str, notes: list[str]) -> tuple[Array, int | None]:
    """Return pixels of a dtype we promise, and their bits where the values no longer tell."""
    kind = pixels.dtype.kind
    if kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255), None
    if pixels.dtype in (np.uint8, np.uint16):
        # Also turns big-endian numbers into the machine's own.
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), None
    if kind in "iu":
        return _whole(pixels, notes)
    if kind == "f":
        return _finite(pixels, path, notes), FLOAT_BITS
    raise UserError(f"{path} holds {pixels.dtype.name} numbers; a micrograph has real grey levels")


def _whole(pixels: Array, notes: list[str]) -> tuple[Array, int | None]:
    """Return signed or wide whole numbers with the values they have.

    An offset that makes them positive would depend on the file: the same grey would become
    another one beside a file that has no negative value.
    """
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest >= 0 and highest <= 65_535:
        narrow = np.uint8 if pixels.dtype == np.int8 else np.uint16
        return pixels.astype(narrow), None
    if lowest < 0:
        notes.append("negative grey levels are kept as they are")
    bits = max(8, highest.bit_length())
    return pixels.astype(np.float32), bits + 1 if bits == FLOAT_BITS else bits


def _finite(pixels: Array, path: Path | str, notes: list[str]) -> Array:
    beyond = 0
    if pixels.dtype.itemsize > np.dtype(np.float32).itemsize:
        size = np.abs(pixels)
        beyond = int((np.isfinite(size) & (size > np.finfo(np.float32).max)).sum())
    if 2 * beyond > pixels.size:
        raise UserError(f"{path} holds numbers beyond 3.4e38 in {beyond} of {pixels.size} pixels")
    with np.errstate(over="ignore"):
        # What float32 cannot hold becomes infinite, and is said below.
        pixels = pixels.astype(np.float32)
    bad = ~np.isfinite(pixels)
    if bad.all():
        raise UserError(f"{path} holds no finite value")
    if bad.any():
        notes.append(f"{int(bad.sum())} non-finite pixels take the smallest value")
        pixels = np.where(bad, pixels[~bad].min(), pixels)
    return pixels


def _fewer_channels(pixels: Array, color: str, notes: list[str]) -> Array:
    """Return one channel where three are equal, or luminance is asked for."""
    if all((pixels[rows] == pixels[rows, :, :1]).all() for rows in strips(len(pixels))):
        return pixels[..., 0]
    if color != "gray":
        return pixels
    notes.append("colour becomes luminance")
    result = roomy(pixels.shape[:2], pixels.dtype)
    for rows in strips(len(pixels)):
        gray = pixels[rows].astype(np.float32) @ LUMINANCE.astype(np.float32)
        result[rows] = np.rint(gray) if pixels.dtype.kind == "u" else gray
    return result


def _significant_bits(pixels: Array) -> int:
    if pixels.dtype == np.uint8:
        return 8
    highest = int(pixels.max(initial=0))
    for bits in (8, 10, 12, 14):
        if highest < 1 << bits:
            return bits
    return 16


def significant(pixels: Array) -> int:
    """Return the bits that unsigned whole numbers use, of the depths cameras have."""
    if pixels.dtype.itemsize > 2:
        return 8 * pixels.dtype.itemsize
    return _significant_bits(pixels)
