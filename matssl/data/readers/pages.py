"""Pages of a TIFF file as pictures of their own: the file is named as if it were a folder of them.

``film.tif/film-0003.tif`` is page 3 of ``film.tif``, counted from 1. No file of a disk can have
that name, since a file holds no others: a page is never taken for a file.
"""

from __future__ import annotations

import re
from pathlib import Path

from matssl.core.errors import UserError

ENDINGS = frozenset((".tif", ".tiff"))
# Pages are named with as many digits, so that their order is that of their names.
DIGITS = 4
_NUMBER = re.compile(r"-(\d{4,})$")


def page_path(file: Path, number: int) -> Path:
    """Return what a page is called.

    Args:
        file: of several pages.
        number: of the page, counted from 1.
    """
    return file / f"{file.stem}-{number:0{DIGITS}}{file.suffix}"


def resolved(path: Path | str) -> tuple[Path, int | None]:
    """Return the file of a picture and its page, counted from 0; None for a file as a whole."""
    path = Path(path)
    own = told(path)
    return (path.parent, own[1] - 1) if own and path.parent.is_file() else (path, None)


def told(path: Path | str) -> tuple[str, int] | None:
    """Return file and page, from 1, that the name of a page says, wherever the file now lies."""
    path = Path(path)
    file = path.parent
    match = _NUMBER.search(path.stem)
    if file.suffix.lower() not in ENDINGS or path.suffix != file.suffix or match is None:
        return None
    whole = path.stem == file.stem + match[0] and int(match[1]) > 0
    return (file.stem, int(match[1])) if whole else None


def file_of(path: Path | str) -> Path:
    """Return the file that holds a picture: its own, or that of the page."""
    return resolved(path)[0]


def alike(path: Path) -> int:
    """Return how many pages of a file are pictures of the size of its largest; 1 of other files.

    Whether they are frames (:func:`frames`) is not asked: channels count as well. A file that is no
    TIFF, or cannot be understood, has one.
    """
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return 1
    from matssl.data.readers import tiff

    try:
        return max(1, tiff.alike(path))
    except Exception:  # what is damaged is refused where it is read
        return 1


def stray(path: Path) -> int:
    """Return how many pages of a file have not the size of its largest; 0 of other files."""
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return 0
    from matssl.data.readers import tiff

    try:
        return tiff.count(path) - tiff.alike(path)
    except Exception:  # what is damaged is refused where it is read
        return 0


def frames(path: Path) -> tuple[Path, ...]:
    """Return the pages of a stack as pictures; none of a file that is no stack.

    A stack is a TIFF file of two or more pages of one size, number of channels and bits, as its
    largest page has them; smaller ones (previews) are no frames.

    Raises:
        UserError: it holds frames in more than one direction (channels, times and depths), or
            cannot be read.
    """
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return ()
    from matssl.data.readers import tiff
    from matssl.data.readers.headers import first_line

    try:
        numbers = tiff.frames(path)
    except UserError:
        raise
    except Exception as error:  # a parser of foreign bytes may stumble over anything
        raise UserError(f"{path} is broken: {first_line(error)}") from error
    return tuple(page_path(path, number + 1) for number in numbers)
