"""Files that are named as the picture they belong to, and packages that not everybody has."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from matssl.core.errors import UserError
from matssl.data.annotations.drawing import picture_name

# What programs and people add to a picture's name.
_ADDED = re.compile(
    r"[ _.-]+(labels?|masks?|seg|scribbles?|annotations?|shapes?|roi ?sets?|rois?)$", re.IGNORECASE
)
_BEFORE = re.compile(r"^(roi ?set|rois?|labels?|scribbles?)[ _.-]+", re.IGNORECASE)
# What ImageJ and others call a file where nobody says otherwise; its folder tells the picture.
_DEFAULT = re.compile(r"^(roi ?set|labels?|shapes?|scribbles?)$", re.IGNORECASE)


def pictures(file: Path, root: Path, stem: str | None = None) -> tuple[str, ...]:
    """Return what the picture of a file may be called, the likeliest first.

    Args:
        file: that bears its name.
        root: folder that the names of pictures start from.
        stem: the file's name without its ending; found where None.
    """
    stem = file.stem if stem is None else stem
    folder = file.parent.relative_to(root).as_posix() if file.parent != root else ""
    found = [stem, _ADDED.sub("", stem), _BEFORE.sub("", stem)]
    names = [f"{folder}/{name}" if folder else name for name in found if name]
    if _DEFAULT.match(stem) and folder:
        names.append(folder)
    return tuple(dict.fromkeys(map(picture_name, names)))


def package(name: str, what: str) -> ModuleType:
    """Return a package that the extra [annotations] installs.

    Args:
        name: of the package.
        what: needs it, in words.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{what} needs the package {name}: pip install 'matssl[annotations]'"
        ) from error
