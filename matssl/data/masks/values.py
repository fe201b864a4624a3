"""Values of mask files: grey values and colours as numbers, and how near two are."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from matssl.core.arrays import Array

# A grey value 3, a colour "#rrggbb", or a range of grey values "128-255".
Value = int | str
# Codes of colours start here, so that no grey value is one of them.
COLOR = 1 << 40
BLACK = COLOR
# Pixels that are looked at together: bounds what is held beside a large mask.
CHUNK = 1 << 22
RANGE = re.compile(r"(\d+)\s*-\s*(\d+)")


def to_8_bit(raw: Array) -> NDArray[np.uint8]:
    """Return 16-bit grey or colour values as 8-bit ones; full stays full, zero stays zero."""
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype == np.uint16:
        return (raw >> 8).astype(np.uint8)
    return np.clip(raw, 0, 255).astype(np.uint8)


def pack(raw: Array) -> NDArray[np.int64]:
    """Return one number per pixel: the value itself, or ``COLOR`` + 0xrrggbb for a colour."""
    if raw.ndim == 2:
        return raw.astype(np.int64)
    r, g, b = (raw[..., i].astype(np.int64) for i in range(3))
    return COLOR | (r << 16) | (g << 8) | b


def tally(raw: Array, where: NDArray[np.bool_] | None = None) -> tuple[Array, Array]:
    """Return the codes in a mask in ascending order, int64 (N,), and how many pixels each has.

    Args:
        raw: (H, W) or (H, W, 3).
        where: (H, W), the pixels that count; all when None.
    """
    found: dict[int, int] = {}
    for rows in strips(raw):
        if raw.ndim == 2 and raw.dtype.kind == "u" and raw.dtype.itemsize <= 2:
            # Counting is much faster than sorting.
            part = raw[rows] if where is None else raw[rows][where[rows]]
            sizes = np.bincount(part.ravel())
            for value in np.flatnonzero(sizes).tolist():
                found[value] = found.get(value, 0) + int(sizes[value])
            continue
        part = pack(raw[rows])
        codes = part.ravel() if where is None else part[where[rows]]
        values, sizes = np.unique(codes, return_counts=True)
        for value, size in zip(values.tolist(), sizes.tolist(), strict=True):
            found[value] = found.get(value, 0) + size
    values = np.array(sorted(found), np.int64)
    return values, np.array([found[value] for value in values.tolist()], np.int64)


def translate(raw: Array, values: Array, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return uint8 (H, W): for each pixel the entry of ``table`` that stands for its code.

    Args:
        raw: (H, W) or (H, W, 3).
        values: all codes of ``raw`` in ascending order.
        table: (N,) beside ``values``.
    """
    result = np.empty(raw.shape[:2], np.uint8)
    for rows in strips(raw):
        result[rows] = table[np.searchsorted(values, pack(raw[rows]))]
    return result


def strips(raw: Array) -> Iterator[slice]:
    """Yield the rows of a mask in parts that are looked at together."""
    step = max(1, CHUNK // max(1, raw.shape[1]))
    for start in range(0, len(raw), step):
        yield slice(start, start + step)


def gray_color(value: int) -> int:
    """Return the code of the colour that an 8-bit grey value is shown as."""
    return COLOR | min(max(value, 0), 255) * 0x010101


def show(code: int, kind: str = "index") -> str:
    """Return a packed value as people write it."""
    return f"#{code & 0xFFFFFF:06x}" if code >= COLOR and kind == "color" else str(code)


def shown(codes: list[int], kind: str = "index", most: int = 8) -> str:
    """Return packed values as a list for a sentence, the first of them where there are many."""
    listed = ", ".join(show(code, kind) for code in codes[:most])
    return f"{listed} ..." if len(codes) > most else listed


def span(value: Value) -> tuple[int, int]:
    """Return the first and the last code that a value of a class table means."""
    if isinstance(value, str):
        if value.startswith("#"):
            code = COLOR | int(value[1:], 16)
            return code, code
        found = RANGE.fullmatch(value)
        if found:
            return int(found[1]), int(found[2])
    return int(value), int(value)


def code_of(value: Value) -> int:
    """Return the first code that a value means, as :func:`pack` numbers it."""
    return span(value)[0]


def distance(a: int, b: int) -> int:
    """Return the largest difference of two grey values, or of two colours in any channel."""
    if a < COLOR or b < COLOR:
        return abs(a - b)
    return max(abs(((a >> s) & 255) - ((b >> s) & 255)) for s in (16, 8, 0))


def channels(codes: Array) -> Array:
    """Return codes of colours as (N, 3) int64, codes of grey values as (N, 1)."""
    if len(codes) and int(codes[0]) >= COLOR:
        return np.stack([(codes >> shift) & 255 for shift in (16, 8, 0)], axis=1)
    return codes[:, None]
