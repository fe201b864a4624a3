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
    file = path.parent
    if file.suffix.lower() in ENDINGS and path.suffix == file.suffix:
        match = _NUMBER.search(path.stem)
        if match and path.stem == file.stem + match[0] and int(match[1]) and file.is_file():
            return file, int(match[1]) - 1
    return path, None


def file_of(path: Path | str) -> Path:
    """Return the file that holds a picture: its own, or that of the page."""
    return resolved(path)[0]


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
