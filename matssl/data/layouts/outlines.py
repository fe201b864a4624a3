"""Files in which labelling programs keep outlines, beside masks: they are named and not read."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from matssl.core.wording import counted

# Bytes that are looked at of each end of a file, and files that are looked at in all.
LOOKED_AT, MOST = 1 << 14, 200
_ENDINGS = (".json", ".geojson", ".xml", ".zip", ".roi")


def notes(files: Iterable[Path]) -> list[str]:
    """Return what files hold of annotations, in words; nothing where there is none."""
    found: Counter[str] = Counter()
    first: dict[str, str] = {}
    named = [path for path in files if path.suffix.lower() in _ENDINGS]
    for path in named[:MOST]:
        program = kind(path)
        if program:
            found[program] += 1
            first.setdefault(program, path.name)
    return [
        f"{counted(number, 'file')} of {program} (first: {first[program]}): annotations, which are "
        "read where there are no masks; python -m matssl.tools.annotations import makes masks of "
        "them"
        for program, number in found.items()
    ]


def kind(path: Path) -> str:
    """Return which program's annotations a file holds, "" where it holds none."""
    end = path.suffix.lower()
    try:
        if end == ".roi":
            return "ImageJ ROIs" if _start(path)[:4] == b"Iout" else ""
        if end == ".zip":
            return "ImageJ ROIs" if _holds_rois(path) else ""
        text = _ends(path)
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return ""
    if end == ".xml":
        return "CVAT" if "<annotations" in text and "<image " in text else ""
    for program, words in (
        ("LabelMe", ('"shapes"', '"imagePath"')),
        ("COCO", ('"annotations"', '"images"', '"categories"')),
        ("VIA", ('"regions"', '"shape_attributes"')),
        ("Label Studio", ('"annotations"', '"from_name"')),
        ("QuPath", ('"Feature', '"geometry"')),
    ):
        if all(word in text for word in words):
            return program
    return ""


def _start(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with open(path, "rb") as file:
        return file.read(LOOKED_AT)


def _ends(path: Path) -> str:
    """Return the keys of a text: its beginning, and its end where pictures lie between."""
    start = _start(path)
    size = path.stat().st_size
    if size <= 1 << 20 and start:
        return path.read_bytes().decode("utf-8", "replace")
    with open(path, "rb") as file:
        file.seek(max(0, size - LOOKED_AT))
        return (start + file.read(LOOKED_AT)).decode("utf-8", "replace")


def _holds_rois(path: Path) -> bool:
    if not path.is_file():
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.lower().endswith(".roi") for name in _some(archive.namelist()))


def _some(names: Iterable[str]) -> list[str]:
    return list(names)[:LOOKED_AT]
