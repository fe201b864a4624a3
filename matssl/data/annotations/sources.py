"""Foreign annotation files opened within bounds: which there are, and typed values out of JSON."""

from __future__ import annotations

import base64
import binascii
import codecs
import io
import math
import struct
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import counted, cut
from matssl.data import readers
from matssl.data.annotations.drawing import FARTHEST, Ellipse, Points, Shape, label_of, ring
from matssl.data.readers.headers import MAX_EXPANSION, MAX_SIDE, first_line

# A file of all annotations of a large project, and the beginning and end of it that are looked at
# to tell what it is.
BYTES, VALUES, LOOKED_AT = 1 << 28, 1 << 24, 1 << 16
# Bytes that are searched at once, and more than a word that is looked for has.
PART, LONGEST = 1 << 22, 64
# Kinds of letters that are in no name: control, breaks of lines and paragraphs, halves of letters.
UNWRITABLE = frozenset(("Cc", "Zl", "Zp", "Cs"))
# Files of which a folder is judged.
MOST_JUDGED = 50
# Pixels of a picture that a mask may fill.
MOST_PIXELS = 1 << 30


def files(path: Path, endings: Sequence[str]) -> list[Path]:
    """Return the files below a folder whose names end so, in natural order; a file is itself."""
    if not path.is_dir():
        return [path] if path.name.lower().endswith(tuple(endings)) and path.is_file() else []
    listed = readers.listing(path)
    found = [p for p in (*listed.images, *listed.others) if not p.name.startswith(".")]
    found = [p for p in found if p.name.lower().endswith(tuple(endings)) and p.is_file()]
    return sorted(found, key=lambda p: readers.natural(p.relative_to(path).as_posix()))


def recognised(path: Path, endings: Sequence[str], is_one: Callable[[Path], bool]) -> bool:
    """Return whether a file, or one of the first files of a folder, is of some kind."""
    return any(is_one(file) for file in files(path, endings)[:MOST_JUDGED])


def chosen(
    path: Path,
    endings: Sequence[str],
    is_one: Callable[[Path], bool],
    program: str,
    beside: Sequence[str] = (),
) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files of a folder that are of some kind, and a note about the others.

    Args:
        path: the folder, or a file.
        endings: of their names.
        is_one: whether a file is of the kind.
        program: whose files they are.
        beside: names of files that lie beside them and are no news.

    Raises:
        UserError: there is none.
    """
    listed = files(path, endings)
    found = [file for file in listed if is_one(file)]
    if not found:
        kinds = ", ".join(endings)
        there = (
            f"; of {len(listed)} files ({kinds}) none is" if listed else f" (looked for {kinds})"
        )
        raise UserError(f"{path} holds no annotations of {program}{there}")
    known = set(found)
    others = [file for file in listed if file not in known and file.name not in beside]
    if not others:
        return found, ()
    told = f"{counted(len(others), 'file')} not of {program} left out (first: {others[0].name})"
    return found, (told,)


def _encoding(start: bytes) -> str:
    """Return how a text is encoded by its first bytes; Windows writes UTF-16 with a mark."""
    marks = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
    return next((name for mark, name in marks.items() if start.startswith(mark)), "utf-8")


def holds(path: Path, words: Iterable[str], whole: bool = False) -> bool:
    """Return whether a text holds all of some words in what is looked at of it.

    Args:
        path: of the text.
        words: to find.
        whole: look at all of it, where its beginning and its end do not hold them.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(LOOKED_AT)
            size = file.seek(0, 2)
            file.seek(max(len(start), size - LOOKED_AT))
            data = start + file.read(LOOKED_AT)
            coded = (word.encode(_encoding(start)) for word in words)
            left = {word for word in coded if word not in data}
            if not left or not whole or size > BYTES:
                return not left
            file.seek(0)
            end = b""
            while left and (part := file.read(PART)):
                # A word may lie across two parts.
                data = end + part
                left = {word for word in left if word not in data}
                end = data[-2 * LONGEST :]
    except (OSError, ValueError):
        return False
    return not left


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        UserError: see :func:`matssl.core.textfiles.read_json`.
    """
    return textfiles.read_json(path, most=BYTES, values=VALUES)


def table(value: object, where: str) -> dict[str, Any]:
    """Return a value that is a JSON object.

    Raises:
        UserError: it is none; the sentence begins with ``where``.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} is {_shown(value)}, not an object with names")
    return value


def listing(value: object, where: str) -> list[Any]:
    """Return a value that is a JSON list.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, list):
        raise UserError(f"{where} is {_shown(value)}, not a list")
    return value


def text(value: object, where: str) -> str:
    """Return a value that is a text and not empty.

    Raises:
        UserError: it is none.
    """
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} is {_shown(value)}, not a text")
    return value


def label(value: object, where: str) -> str:
    """Return a value that is the name of a class, as :func:`label_of` makes it.

    Raises:
        UserError: it is none, or holds a line break or a letter that no class file can hold.
    """
    found = label_of(str(value) if _is_number(value) else text(value, where))
    if any(unicodedata.category(c) in UNWRITABLE or c in "\ufffe\uffff" for c in found):
        raise UserError(f"{where} is {_shown(found)}, which holds a line break or the like")
    return found


def label_or(value: object, instead: str, where: str) -> str:
    """Return the name of a class, or what ``--label`` says where there is none.

    Raises:
        UserError: it is no text, or there is none and nothing is said.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        if not instead:
            raise UserError(f"{where} has no class name; --label NAME gives it one")
        return label(instead, "--label")
    return label(value, f"{where}: label")


def number(value: object, where: str, low: float = -FARTHEST, high: float = FARTHEST) -> float:
    """Return a value that is a finite number between two bounds.

    Raises:
        UserError: it is none.
    """
    found = float(value) if _is_number(value) and abs(value) < 1e300 else math.nan  # type: ignore[arg-type]
    if not low <= found <= high:
        raise UserError(f"{where} is {_shown(value)}, not a number from {low:g} to {high:g}")
    return found


def whole(value: object, where: str, low: int, high: int) -> int:
    """Return a value that is a whole number between two bounds.

    Raises:
        UserError: it is none.
    """
    found = number(value, where, low, high)
    if found != int(found):
        raise UserError(f"{where} is {_shown(value)}, not a whole number")
    return int(found)


def size(height: object, width: object, where: str) -> tuple[int, int]:
    """Return rows and columns of a picture.

    Raises:
        UserError: they are none, or of no picture that is read.
    """
    rows = whole(height, f"{where}: height", 1, MAX_SIDE)
    columns = whole(width, f"{where}: width", 1, MAX_SIDE)
    if rows * columns > MOST_PIXELS:
        raise UserError(f"{where}: {rows} x {columns} pixels are more than a picture has")
    return rows, columns


def points(value: object, where: str) -> Points:
    """Return a list of pairs [x, y] as float64 (N, 2), without the first again at the end.

    Raises:
        UserError: it is none, or a number is not finite or lies outside any picture.
    """
    pairs = listing(value, where)
    for at, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise UserError(f"{where}: point {at + 1} is {_shown(pair)}, not two numbers")
    return outline(pairs, where)


def outline(pairs: Sequence[Sequence[float]] | Points, where: str) -> Points:
    """Return pairs of numbers as an outline.

    Raises:
        UserError: a number is not finite or lies outside any picture.
    """
    try:
        found = np.asarray(pairs, np.float64).reshape(-1, 2)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{where}: its points are no pairs of numbers") from error
    wrong = ~(np.abs(found) <= FARTHEST).all(axis=1)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise UserError(f"{where}: point {at + 1} is {found[at].tolist()}, in no picture")
    return ring(found)


def at_least(points: Points, number: int, where: str) -> None:
    """Refuse a shape with fewer points than its kind has.

    Raises:
        UserError: there are fewer.
    """
    if len(points) < number:
        raise UserError(f"{where} has {counted(len(points), 'point')}, not {number}")


def png_size(data: bytes, where: str) -> tuple[int, int]:
    """Return rows and columns that a PNG file promises.

    Raises:
        UserError: it is none, or promises more than its bytes can hold.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        raise UserError(f"{where} is no PNG")
    columns, rows = struct.unpack(">II", data[16:24])
    found = size(rows, columns, where)
    if rows * columns > MAX_EXPANSION * 8 * len(data):
        raise UserError(f"{where}: {rows} x {columns} pixels are more than its bytes can hold")
    return found


def png(data: bytes, where: str) -> NDArray[np.bool_]:
    """Return where a PNG file is above 0, bool (rows, columns); alpha does not count.

    Raises:
        UserError: it is none, damaged, or larger than a picture.
    """
    from PIL import PngImagePlugin

    png_size(data, where)
    try:
        # The plugin itself: Image.open refuses what is large, and that is judged here.
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            image.load()
            found = np.asarray(image) > 0
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{where} is no PNG, or damaged: {first_line(error)}") from error
    if found.ndim == 2:
        return found
    shown = found[..., : 1 if found.shape[2] == 2 else 3]
    return np.asarray(shown.any(axis=2))


def decoded(value: object, where: str) -> bytes:
    """Return the bytes of a text in base64.

    Raises:
        UserError: it is none.
    """
    try:
        return base64.b64decode("".join(text(value, where).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where} is no base64: {cut(str(error), 80)}") from error


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return cut(repr(value), 60)


def identity(value: object, where: str) -> str | int:
    """Return an id: a whole number, 0 among them, or a text.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float) and value.is_integer():
        # Tables write whole numbers so.
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: its id is {_shown(value)}")
    return value


def ellipse(label: str, found: Ellipse, where: str) -> Shape | None:
    """Return an ellipse as a shape; None of one without an area.

    Raises:
        UserError: it lies outside any picture.
    """
    numbers = (found.x, found.y, found.rx, found.ry, found.degrees)
    if not all(abs(value) <= FARTHEST for value in numbers):
        raise UserError(f"{where} lies in no picture")
    return Shape(label, "ellipse", ellipse=found) if found.rx > 0 and found.ry > 0 else None
