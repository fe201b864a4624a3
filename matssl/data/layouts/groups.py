"""Which images belong together: of one specimen, or tiles of one frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matssl.core.errors import UserError

_LAST_COUNTER = re.compile(r"[-_ .#]*\(?\d+\)?$")


def group_of(path: Path, regex: str | None = None) -> str:
    """Return the name of the group an image belongs to.

    Without ``regex`` it is the file name's stem before the last counter: tiles ``8_1 ... 8_4`` form
    the group ``8``. With it, the first group of the match (or the whole match).

    Raises:
        UserError: the regular expression is invalid.
    """
    if regex:
        match = _search(regex, path)
        if match:
            return match[1] if match.groups() else match[0]
        return path.stem
    stem = path.stem
    if "_crop_" in stem:
        # Windows cut from one frame belong to that frame.
        return stem.split("_crop_")[0]
    short = _LAST_COUNTER.sub("", stem)
    return short or stem


def check_regex(paths: Sequence[Path], regex: str | None) -> None:
    """Refuse a regular expression that fits none of the file names: it would group nothing.

    Raises:
        UserError: it fits none, or is invalid.
    """
    if regex and paths and not any(_search(regex, path) for path in paths):
        raise UserError(
            f"--group_regex {regex!r} fits none of the {len(paths)} file names (first: "
            f"{paths[0].name})"
        )


def groups_of(paths: list[Path], regex: str | None = None) -> list[str]:
    """Return the group of each path; images that differ by a counter alone stand for themselves.

    A folder of image_1 ... image_9 says nothing about specimens. Where the rule would put every
    image into one group, each image is its own.
    """
    names = [group_of(path, regex) for path in paths]
    if regex is None and len(paths) > 1 and len(set(names)) == 1:
        return [path.stem for path in paths]
    return names


def _search(regex: str, path: Path) -> re.Match[str] | None:
    try:
        return re.search(regex, path.stem)
    except re.error as error:
        raise UserError(f"--group_regex {regex!r} is not valid: {error}") from error
