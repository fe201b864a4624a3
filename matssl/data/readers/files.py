"""Which files of a folder are pictures, in the order a person would put them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from matssl.core.errors import UserError

EXTENSIONS = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp"})
# What may carry the name of a picture and never ends, or never begins.
SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def find_images(folder: Path | str) -> list[Path]:
    """Return all image files below ``folder``, in natural order of their relative paths.

    Hidden files, resource forks and files of other kinds are left out; links that lead in a
    circle are followed once.

    Raises:
        UserError: the folder does not exist, is no folder, holds no image, or one in it cannot be
            looked into.
    """
    root = Path(folder)
    if not root.exists():
        raise UserError(f"there is no folder {root}")
    if not root.is_dir():
        raise UserError(f"{root} is a file; give the folder that holds the images")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, onerror=_unlisted, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(place) / name for name in files if is_image_name(name)]
    if not found:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise UserError(f"there is no image in {root} (looked for {kinds}, also in sub-folders)")
    return sorted(found, key=lambda path: natural(str(path.relative_to(root))))


def _unlisted(error: OSError) -> None:
    """Refuse a folder that cannot be looked into: what lies in it would be missed in silence."""
    raise UserError(f"cannot look into {error.filename}: {error.strerror}") from error


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is taken for an image."""
    return not name.startswith((".", "_.")) and Path(name).suffix.lower() in EXTENSIONS


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a sorting key in which image 2 comes before image 10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def size_of(path: Path) -> int:
    """Return the bytes of a file that can be read to its end.

    Opening a pipe waits for a writer and a device may never end, so this is asked first.

    Raises:
        UserError: it is absent, empty, or no file of bytes.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {told}") from error
    for is_kind, name in SPECIAL:
        if is_kind(status.st_mode):
            raise UserError(f"{path} is {name}, no image file; take it out of the folder")
    if status.st_size == 0:
        raise UserError(f"{path} is empty")
    return status.st_size
