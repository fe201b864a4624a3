"""How bytes, texts and plain values are spoiled."""

from __future__ import annotations

import copy
import math
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Rng = np.random.Generator

# What stands where a number is expected.
NUMBERS = (
    *("0", "-1", "-0.0", "1e999", "-1e999", "nan", "inf", "1.2.3", "1,5", "", "x", "²", "0x10"),
    *("9" * 30, "9" * 5000, "1e-320", "2147483648", "-2147483649", "18446744073709551616", "1_0"),
)
WORDS = (
    *("", " ", "x" * 300, "x" * 5000, "a\0b", "../../etc/passwd", "/dev/zero", "=1+1", "-", "null"),
    *(
        "<script>",
        "$x^{$",
        "\udcff",
        "\u202e\u2066",
        "ä" * 200,
        "true",
        "[]",
        "{}",
        "*",
        "%s%n",
        "~",
    ),
)
VALUES: tuple[Callable[[], Any], ...] = (
    *(lambda v=v: v for v in (None, True, 0, -1, 10**9, 2**70, 0.0, -0.5, 1e300, "", "x", b"x")),
    *(lambda v=v: v for v in (math.nan, math.inf, "1", "x" * 2000, 256, 1 << 31)),
    *(lambda: [], dict, lambda: [1, 2], lambda: {"a": 1}, lambda: [[[]]], lambda: torch.zeros(0)),
    *(lambda: torch.full((3,), math.nan), lambda: torch.zeros(2, 2), lambda: torch.tensor(7)),
)
INTEGERS = (0, 1, 2, 127, 128, 255, 256, 32767, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 2**32 - 1)


def spoiled_bytes(rng: Rng, data: bytes, other: bytes = b"") -> bytes:
    """Return bytes with one to four faults; ``other`` lends pieces.

    The check sums of every second PNG are made to fit again, so that faults get past them.
    """
    result = bytearray(data)
    for _ in range(_faults(rng)):
        if not result:
            break
        fault = BYTE_FAULTS[rng.integers(len(BYTE_FAULTS))]
        fault(rng, result, other or data)
    return _summed(bytes(result)) if rng.random() < 0.5 else bytes(result)


def _faults(rng: Rng) -> int:
    return 1 if rng.random() < 0.6 else int(rng.integers(2, 5))


def _summed(data: bytes) -> bytes:
    """Return a PNG whose parts have the check sums that fit them; other bytes as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    result, place = data[:8], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        part = data[place + 4 : place + 8 + size]
        if place + 12 + size > len(data):
            break
        result += data[place : place + 4] + part + zlib.crc32(part).to_bytes(4, "big")
        place += 12 + size
    return result + data[place:]


def spoiled_pixels(rng: Rng, pixels: np.ndarray) -> np.ndarray:
    """Return a picture or mask of another type, size, range or content."""
    how = rng.integers(7)
    if how == 0:
        kinds = (np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64, np.uint32, bool)
        return pixels.astype(kinds[rng.integers(len(kinds))])
    if how == 1:
        rows, columns = (int(rng.choice([1, 2, 7, 40, 47, 49, 200])) for _ in range(2))
        return np.resize(pixels, (rows, columns, *pixels.shape[2:]))
    if how == 2:
        values = rng.choice([0, 1, 2, 3, 127, 128, 254, 255], pixels.shape)
        mixed = np.where(rng.random(pixels.shape) < rng.choice([0.001, 0.5]), values, pixels)
        return mixed.astype(pixels.dtype)
    if how == 3:
        return np.full_like(pixels, rng.choice([0, 1, 128, 255]))
    if how == 4:
        odd = np.where(pixels > 0, rng.choice([math.nan, math.inf, -1e30, 1e30, 0.5]), 0.0)
        return odd.astype(np.float32)
    if how == 5:
        depth = int(rng.integers(1, 6))
        return np.repeat(pixels[..., None] if pixels.ndim == 2 else pixels[..., :1], depth, axis=2)
    return rng.integers(0, 256, pixels.shape).astype(np.uint8)


def _place(rng: Rng, data: bytearray) -> int:
    # Heads and tails of files say more than their middle.
    where = rng.random()
    size = len(data)
    if where < 0.5:
        return int(rng.integers(min(size, 512)))
    if where < 0.7:
        return size - 1 - int(rng.integers(min(size, 512)))
    return int(rng.integers(size))


def _flip(rng: Rng, data: bytearray, other: bytes) -> None:
    for _ in range(rng.integers(1, 9)):
        data[_place(rng, data)] ^= 1 << int(rng.integers(8))


def _integer(rng: Rng, data: bytearray, other: bytes) -> None:
    place, form = _place(rng, data), ("<H", ">H", "<I", ">I", "<Q")[rng.integers(5)]
    size = struct.calcsize(form)
    value = int(INTEGERS[rng.integers(len(INTEGERS))]) & ((1 << 8 * size) - 1)
    data[place : place + size] = struct.pack(form, value)


def _cut(rng: Rng, data: bytearray, other: bytes) -> None:
    del data[int(rng.integers(len(data))) :]


def _drop(rng: Rng, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    del data[place : place + int(rng.integers(1, 65))]


def _insert(rng: Rng, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place:place] = rng.bytes(int(rng.integers(1, 65)))


def _blank(rng: Rng, data: bytearray, other: bytes) -> None:
    place, size = _place(rng, data), int(rng.integers(1, 513))
    value = (0, 255, 32, int(rng.integers(256)))[rng.integers(4)]
    stop = min(len(data), place + size)
    data[place:stop] = bytes([value]) * (stop - place)


def _repeat(rng: Rng, data: bytearray, other: bytes) -> None:
    place = _place(rng, data)
    data[place:place] = data[place : place + int(rng.integers(1, 257))]


def _splice(rng: Rng, data: bytearray, other: bytes) -> None:
    place, start = _place(rng, data), int(rng.integers(len(other)))
    piece = other[start : start + int(rng.integers(1, 2049))]
    data[place : place + len(piece)] = piece


def _digits(rng: Rng, data: bytearray, other: bytes) -> None:
    found = list(re.finditer(rb"\d+(\.\d+)?", bytes(data)))
    if found:
        match = found[rng.integers(len(found))]
        data[match.start() : match.end()] = NUMBERS[rng.integers(len(NUMBERS))].encode()


BYTE_FAULTS: tuple[Callable[[Rng, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _integer, _integer, _integer, _cut, _drop, _insert, _blank, _repeat, _splice),
    _digits,
)


def spoiled_text(rng: Rng, text: str) -> bytes:
    """Return a text file with one to four faults of texts, now and then of bytes."""
    for _ in range(_faults(rng)):
        text = TEXT_FAULTS[rng.integers(len(TEXT_FAULTS))](rng, text)
    data = text.encode("utf-8", "surrogateescape")
    how = rng.random()
    if how < 0.08:
        data = b"\xef\xbb\xbf" + data
    elif how < 0.14:
        data = text.encode("utf-16", "replace")
    elif how < 0.22:
        data = text.encode("latin-1", "replace").replace(b"a", b"\xe4", 1)
    elif how < 0.35:
        data = spoiled_bytes(rng, data or b"\n")
    return data


def _token(rng: Rng, text: str) -> str:
    found = list(re.finditer(r"[^\s,;:{}\[\]\"']+", text))
    if not found:
        return text
    match = found[rng.integers(len(found))]
    pool = NUMBERS if rng.random() < 0.5 else WORDS
    return text[: match.start()] + pool[rng.integers(len(pool))] + text[match.end() :]


def _line(rng: Rng, text: str) -> str:
    lines = text.splitlines(keepends=True) or ["\n"]
    place = int(rng.integers(len(lines)))
    what = rng.integers(5)
    if what == 0:
        del lines[place]
    elif what == 1:
        lines.insert(place, lines[int(rng.integers(len(lines)))])
    elif what == 2:
        lines[place] = lines[place].strip("\n")
    elif what == 3:
        lines[place] = lines[place][: int(rng.integers(len(lines[place]) + 1))]
    else:
        lines.insert(place, "\t" * int(rng.integers(1, 4)) + "- ? : &a *a\n")
    return "".join(lines)


def _deep(rng: Rng, text: str) -> str:
    depth = int(10 ** rng.uniform(0.5, 4))
    start, stop = (("[", "]"), ('{"a":', "}"), ("- ", ""), ("(", ")"))[rng.integers(4)]
    place = int(rng.integers(len(text) + 1))
    return text[:place] + start * depth + "1" + stop * depth + text[place:]


def _laughs(rng: Rng, text: str) -> str:
    lines = ["l0: &l0 [" + ",".join("x" * 9) + "]"]
    lines += [f"l{i}: &l{i} [{','.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 9)]
    lines.append("me: &me [*me]" if rng.random() < 0.3 else "last: *l8")
    return text + "\n" + "\n".join(lines) + "\n"


def _separators(rng: Rng, text: str) -> str:
    old, new = SEPARATORS[rng.integers(len(SEPARATORS))]
    return text.replace(old, new)


SEPARATORS = (
    *((",", ";"), (":", "="), ("\n", "\r"), ('"', "'"), ("/", "\\"), ("\n", "\r\n"), (" ", "\t")),
)
TEXT_FAULTS: tuple[Callable[[Rng, str], str], ...] = (
    *(_token, _token, _token, _line, _line, _deep, _laughs, _separators),
)


def spoiled_values(rng: Rng, content: Any) -> Any:
    """Return a copy of nested plain values and tensors with one or two of them spoiled."""
    result = copy.deepcopy(content)
    for _ in range(rng.integers(1, 3)):
        holder, key = result, None
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            inner = holder[key]
            if isinstance(inner, (dict, list)) and inner and rng.random() < 0.75:
                holder = inner
                continue
            break
        if key is None or not (isinstance(holder, (dict, list)) and holder):
            continue
        _spoil(rng, holder, key)
    return result


def _spoil(rng: Rng, holder: Any, key: Any) -> None:
    value, what = holder[key], rng.random()
    if what < 0.2:
        del holder[key]
    elif what < 0.3 and isinstance(holder, dict):
        holder[WORDS[rng.integers(len(WORDS))]] = VALUES[rng.integers(len(VALUES))]()
    elif what < 0.55 and isinstance(value, torch.Tensor) and value.numel():
        spoiled = value.clone()
        if spoiled.is_floating_point():
            spoiled.view(-1)[int(rng.integers(spoiled.numel()))] = (math.nan, math.inf, 1e30)[
                rng.integers(3)
            ]
        else:
            spoiled = spoiled.double()
        holder[key] = spoiled
    else:
        holder[key] = VALUES[rng.integers(len(VALUES))]()
