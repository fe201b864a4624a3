"""Images with files of a labelling program in the place of masks, read as if they were imported.

The masks are made once and kept in the user's cache, by what the annotation files hold: what is
read afterwards are masks like all others. Deleting the cache changes time, never bits. What the
files leave open is a question here as it is to ``annotations import``, whose flags answer it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import counted, cut
from matssl.data import readers
from matssl.data.annotations import (
    FORMATS,
    Annotations,
    Choices,
    Drawing,
    module_of,
    numbered,
    painting,
)
from matssl.data.annotations.classes import Classes, of_drawings
from matssl.data.annotations.pairing import Paired, pair
from matssl.data.masks import class_file, is_binary

# Raised where the same files would give other masks than before.
VERSION = 1
# Files of labelling programs; a store of Zarr is a folder.
ENDINGS = (".json", ".geojson", ".xml", ".zip", ".roi", ".csv")
STORE = ".zarr"
# Tables of ours, which many folders have.
OURS = frozenset(("specimens.csv", "splits.csv", "classes.csv", numbered.NAMES))
# What import alone reads: pictures of numbers are masks, whichever program wrote them, and texts of
# YOLO may be anything.
IMPORTED = frozenset(("napari_labels", "ilastik", "yolo"))
CLASSES, RECORD = "classes.yaml", "made_of.json"
# Shapes without area and pictures without annotation that a line tells.
SHOWN = 4


class Undrawn(UserError):
    """Annotation files that name no picture of the data set with a shape on it."""


@dataclass(frozen=True)
class Decoded:
    """Masks that were made of annotation files.

    Attributes:
        folder: where they are kept, with their class file.
        program: the format of the files.
        masks: mask of each picture that is annotated.
        notes: what was taken for what, in words.
    """

    folder: Path
    program: str
    masks: dict[Path, Path]
    notes: tuple[str, ...]


def formats(root: Path, others: Sequence[Path]) -> list[str]:
    """Return which labelling programs' files lie in a folder.

    Args:
        root: the folder.
        others: the files below it that are no pictures.
    """
    if not any(_may_be(path, root) for path in others):
        return []
    found = [n for n in FORMATS if n not in IMPORTED and module_of(n).recognise(root)]
    # Versions of one format are read by the same code.
    return list({module_of(name).read: name for name in reversed(found)}.values())[::-1]


def place(root: Path, mask_folder: str) -> Path | None:
    """Return the folder that ``--mask_folder`` names where it holds annotations and no masks."""
    for path in (root / mask_folder, Path(mask_folder)):
        if path.is_dir():
            return path if not readers.listing(path).images and in_folder(path) else None
    return None


def in_folder(source: Path) -> list[str]:
    """Return which labelling programs' files lie in a folder."""
    return formats(source, readers.listing(source).others)


def _may_be(path: Path, root: Path) -> bool:
    inside = path.relative_to(root).parts[:-1] if root in path.parents else ()
    if path.name.lower() in OURS:
        return False
    return path.suffix.lower() in ENDINGS or any(p.lower().endswith(STORE) for p in inside)


def decoded(
    root: Path,
    source: Path,
    images: Sequence[Path],
    programs: Sequence[str],
    classes: str | None,
) -> Decoded:
    """Return the masks of the annotated pictures of a folder.

    Args:
        root: of the data set.
        source: folder of the annotation files, or the root.
        images: the micrographs.
        programs: from :func:`formats`.
        classes: ``--classes``; None takes the class file in the root, where there is one.

    Raises:
        Undrawn: nothing is drawn on any of the pictures.
        UserError: files of several programs, damaged ones, or what they leave open.
    """
    command = f"python -m matssl.tools.annotations import {source} --images {root}"
    if len(programs) > 1:
        raise UserError(
            f"{source} holds annotations of {' and '.join(programs)}; {command} --format NAME "
            "--output_dir MASKS makes masks of one of them, for --mask_folder MASKS"
        )
    (program,) = programs
    said = None if classes is None or is_binary(classes) else classes
    file = class_file(said, root)
    said = str(file) if file is not None else said
    folder = _cache() / _hash(root, source, images, program, said, file)
    if not (folder / RECORD).is_file():
        try:
            _make(folder, root, source, images, program, said)
        except Undrawn:
            raise
        except UserError as error:
            raise UserError(
                f"annotations of {program} in {source}: {error} (flags of {command} --output_dir "
                "MASKS, for --mask_folder MASKS)"
            ) from error
    return _read(folder, root, program)


def _cache() -> Path:
    """Return the folder of masks that were made of annotations."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = Path(home) / "matssl" / "annotations"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return place
    except OSError:
        # No home that can be written: of this user alone, since names there are everybody's.
        place = Path(tempfile.gettempdir()) / f"matssl-annotations-{os.getuid()}"
        place.mkdir(mode=0o700, exist_ok=True)
        if place.stat().st_uid != os.getuid() or place.is_symlink():
            raise UserError(f"{place} is another user's; set XDG_CACHE_HOME to a folder") from None
        return place


def _hash(
    root: Path,
    source: Path,
    images: Sequence[Path],
    program: str,
    said: str | None,
    file: Path | None,
) -> str:
    """Return what tells these annotations of these pictures from all others."""
    found = hashlib.sha256(f"{VERSION}\0{program}\0{said if file is None else ''}\0".encode())
    if file is not None:
        found.update(file.read_bytes())
    for path in images:
        try:
            head = readers.header(path)
            size: tuple[int, ...] = (head.height, head.width)
        except UserError:
            size = ()
        found.update(f"{_below(path, root)}\0{size}\0{path.resolve()}\0".encode("utf-8", "replace"))
    for path in sorted(_files(source)):
        found.update(f"{_below(path, source)}\0{path.stat().st_size}\0".encode("utf-8", "replace"))
        with open(path, "rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()[:24]


def _files(source: Path) -> Iterator[Path]:
    others = readers.listing(source).others
    files = (path for path in others if path.is_file())
    return (path for path in files if _may_be(path, source) or path.name == numbered.NAMES)


def _below(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _make(
    folder: Path,
    root: Path,
    source: Path,
    images: Sequence[Path],
    program: str,
    said: str | None,
) -> None:
    """Make the masks in a folder that is there whole or not at all."""
    annotations = module_of(program).read(source, Choices())
    paired = pair(annotations.drawings, images, "the data set")
    if not paired.found:
        names = ", ".join(cut(d.picture, 60) for d in annotations.drawings[:SHOWN])
        named = f" (they name {names})" if names else ""
        raise Undrawn(
            f"annotations of {program} in {source} name no picture of {root} with a shape on "
            f"it{named}"
        )
    drawings = [drawing for _, drawing in paired.found]
    classes = of_drawings(drawings, annotations.labels, said, {})
    with tempfile.TemporaryDirectory(prefix=".made.", dir=folder.parent) as name:
        place = Path(name) / "masks"
        place.mkdir()
        masks: dict[str, str] = {}
        covered = pixels = not_drawn = 0
        every = painting.painted(paired, classes, annotations.uncovered)
        for number, (path, drawing, painted) in enumerate(every):
            if painted.overlaps and not drawing.ordered:
                (one, other), claimed = max(painted.overlaps.items(), key=lambda item: item[1])
                raise UserError(
                    f"{cut(one, 60)} and {cut(other, 60)} both claim {claimed:,} pixels of "
                    f"{path.name}, and the format does not say which lies above: --overlap does"
                )
            masks[_below(path, root)] = f"{number:06d}.png"
            encoded = cv2.imencode(".png", painted.mask)[1]
            (place / masks[_below(path, root)]).write_bytes(encoded.tobytes())
            covered, pixels = covered + painted.covered, pixels + painted.mask.size
            not_drawn += int(np.count_nonzero(painted.mask == classes.bare))
        text = classes.text(not_drawn > 0, [f"Values of the masks made of {source}."])
        (place / CLASSES).write_text(text, encoding="utf-8")
        share = 1 - covered / max(1, pixels)
        notes = [*_notes(program, annotations, paired, classes, share)]
        record = {"program": program, "masks": masks, "notes": notes}
        (place / RECORD).write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        try:
            place.rename(folder)
        except OSError:
            # Another run has just made the same.
            if not (folder / RECORD).is_file():
                raise


def _notes(
    program: str, annotations: Annotations, paired: Paired, classes: Classes, bare: float
) -> Iterator[str]:
    """Yield what was taken for what."""
    drawings: list[Drawing] = [drawing for _, drawing in paired.found]
    values = painting.numbered(classes)
    yield (
        f"annotations of {program}: {counted(len(drawings), 'picture')}, "
        f"{counted(sum(len(d.shapes) for d in drawings), 'shape')}; classes {values}"
    )
    if bare > 0:
        what = painting.not_drawn(classes, annotations.uncovered)
        yield f"what nothing covers ({100 * bare:.3g} % of the pixels) is taken for {what}"
    if left := painting.without_area(drawings):
        yield f"left out, without area: {left}"
    if there := painting.absent(paired):
        yield f"not in the data set: {there}"
    yield from (*annotations.notes, *paired.notes, *classes.notes)


def _read(folder: Path, root: Path, program: str) -> Decoded:
    record = textfiles.read_json(folder / RECORD)
    masks = {root / image: folder / mask for image, mask in record["masks"].items()}
    return Decoded(folder, program, masks, tuple(record["notes"]))
