"""Upright pictures: the orientation that cameras and scanners write beside the pixels (EXIF)."""

from __future__ import annotations

import struct

import numpy as np

from matssl.core.arrays import Array

ORIENTATION = 0x0112
UPRIGHT = 1
# (mirrored left to right first, quarter turns counter-clockwise), by the value of the tag: where
# the first row and the first column of the file lie in the picture, TIFF 6.0 p. 36.
TURNS = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}


def upright(pixels: Array, orientation: int) -> Array:
    """Return (H, W) or (H, W, C) as a viewer shows it; a view where nothing is to be done."""
    mirrored, turns = TURNS.get(orientation, (False, 0))
    if (mirrored, turns) == (False, 0):
        return pixels
    shown = pixels[:, ::-1] if mirrored else pixels
    return np.ascontiguousarray(np.rot90(shown, turns))


def on_its_side(orientation: int) -> bool:
    """Return whether rows of the file are columns of the picture."""
    return TURNS.get(orientation, (False, 0))[1] % 2 == 1


def exif_orientation(data: bytes) -> int:
    """Return the orientation in an EXIF block, 1 (upright) where it tells none.

    Args:
        data: the block, with or without its own name in front.
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return UPRIGHT
    try:
        (start,) = struct.unpack(f"{order}I", data[4:8])
        (count,) = struct.unpack(f"{order}H", data[start : start + 2])
        for entry in range(count):
            place = start + 2 + 12 * entry
            tag, kind, number = struct.unpack(f"{order}HHI", data[place : place + 8])
            if tag == ORIENTATION and number == 1 and kind in (3, 4):
                form = f"{order}H" if kind == 3 else f"{order}I"
                size = struct.calcsize(form)
                (value,) = struct.unpack(form, data[place + 8 : place + 8 + size])
                return value if value in TURNS else UPRIGHT
    except struct.error:
        # Cut off or damaged: the picture itself may be whole.
        return UPRIGHT
    return UPRIGHT
