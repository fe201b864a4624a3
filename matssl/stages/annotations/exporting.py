"""Masks as files of a labelling program: ``annotations export``."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_text
from matssl.core.wording import counted, cut
from matssl.data.annotations import Choices, Drawing, Marked, Written, format_name, module_of
from matssl.data.annotations.drawing import is_background, is_ignored, stem_of
from matssl.data.annotations.numbered import PICTURES
from matssl.data.annotations.raster import paint
from matssl.data.layouts.written import class_text
from matssl.data.masks import ClassTable, MaskClass
from matssl.stages.annotations import masks, pages
from matssl.stages.annotations.export_settings import ExportSettings
from matssl.stages.annotations.masks import Masks

CLASSES = "classes.yaml"
# Formats in which a pixel that nothing covers is not labelled, so that every class is drawn.
SCRIBBLES = frozenset(("ilastik",))
SHOWN = 4


def run(args: ExportSettings, argv: Sequence[str]) -> None:
    """Write the files, read them back and say what differs.

    Raises:
        UserError: no masks, or a format that is read only; nothing is written then.
    """
    out, name = Path(args.output_dir), format_name(args.format)
    module = module_of(name)
    if not hasattr(module, "write"):
        raise UserError(f"--format {name} is read and not written; export to another one")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give another --output_dir")
    found = masks.find(Path(args.masks), args.images, args.classes)
    _check_pictures(found)
    names = _drawn(found, args.every_class or name in SCRIBBLES)
    with _scratch(out) as place:
        found = pages.written(found, place)
        cast(Written, module).write(place, _marked(found), names)
        atomic_write_text(place / CLASSES, _class_text(found.names))
        changed = _read_back(place, name, found, names)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            out.rmdir()
        place.rename(out)
    for line in _report(args, name, found, names, changed):
        print(line)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Make a folder for the files, as deep below their disk as the one that it will become.

    Files tell the way to their pictures from where they lie, which the renaming then leaves right.
    """
    above = out.resolve().parent
    while not above.is_dir():
        above = above.parent
    further = out.resolve().relative_to(above).parts[1:]
    scratch = above / f".{out.name[:32]}.{uuid.uuid4().hex[:8]}"
    place = scratch.joinpath(*further)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_pictures(found: Masks) -> None:
    """Refuse pictures whose files would have one name.

    Raises:
        UserError: there are some.
    """
    seen: dict[str, str] = {}
    for one in found.masks:
        other = seen.setdefault(stem_of(one.picture).casefold(), one.picture)
        if other != one.picture:
            raise UserError(
                f"{other} and {one.picture} differ by their ending alone, and so would their "
                "files; give them other names, or take one out"
            )


def _drawn(found: Masks, every: bool) -> dict[int, str]:
    """Return the classes to draw by their number: all, or all but the first.

    Raises:
        UserError: a class is called as programs call none.
    """
    for number, name in enumerate(found.names):
        if is_ignored(name) or (is_background(name) and number):
            raise UserError(
                f"class {number} is called {name!r}, which means no class in annotations; give it "
                "another name"
            )
    return {number: name for number, name in enumerate(found.names) if every or number}


def _marked(found: Masks) -> Iterator[Marked]:
    for one in found.masks:
        yield Marked(one.picture, found.open(one), one.image)


def _class_text(names: Sequence[str]) -> str:
    """Return the class file that makes the same masks again."""
    classes = tuple(MaskClass(number, name, (number,)) for number, name in enumerate(names))
    return class_text(ClassTable("index", classes, (IGNORE,)))


@dataclass(frozen=True)
class Changed:
    """What reading back gave: pixels in all, those that differ, and in how many pictures."""

    pixels: int
    wrong: int
    pictures: int


def _read_back(place: Path, name: str, found: Masks, names: Mapping[int, str]) -> Changed:
    """Return how many pixels differ when the files are read again.

    Raises:
        UserError: a file that was written cannot be read.
    """
    annotations = module_of(name).read(place, Choices())
    drawings: dict[str, Drawing] = {}
    for drawing in annotations.drawings:
        for called in (drawing.picture, *drawing.also):
            drawings.setdefault(stem_of(called), drawing)
    values = {name: number for number, name in enumerate(found.names)}
    bare = IGNORE if annotations.uncovered == "ignore" else 0
    pixels = wrong = pictures = 0
    for one in found.masks:
        mask = found.open(one)
        pixels += mask.size
        drawing_ = drawings.get(stem_of(one.picture))
        if drawing_ is None:
            # Nothing was drawn on it, and some formats have no file of nothing.
            different = int(np.count_nonzero(mask != bare))
        else:
            own = {
                shape.label: values.get(shape.label, IGNORE if is_ignored(shape.label) else 0)
                for shape in drawing_.shapes
            }
            painted = paint(drawing_, (mask.shape[0], mask.shape[1]), own, None, bare)
            different = int(np.count_nonzero(painted.mask != mask))
        wrong, pictures = wrong + different, pictures + (different > 0)
    return Changed(pixels, wrong, pictures)


def _report(
    args: ExportSettings, name: str, found: Masks, names: Mapping[int, str], changed: Changed
) -> Iterator[str]:
    """Yield what was written and how it is read again."""
    yield _line("masks", f"{counted(len(found.masks), 'picture')}: {found.what} of {found.root}")
    drawn = ", ".join(f"{cut(class_, 60)} {number}" for number, class_ in names.items())
    yield _line("drawn", drawn or "no class")
    if 0 not in names:
        yield _line("not drawn", f"{found.names[0]} 0: what nothing covers")
    for note in found.notes:
        yield _line("note", note)
    many = counted(len(found.masks), "picture")
    if changed.wrong:
        share = 100 * changed.wrong / changed.pixels
        yield _line(
            "read back",
            f"{changed.wrong:,} of {changed.pixels:,} pixels differ ({share:.3g} %), in "
            f"{changed.pictures} of {many}",
        )
    else:
        yield _line("read back", f"the same pixels in all of {many}")
    out = Path(args.output_dir)
    yield _line("written", f"{name} in {out}")
    images = args.images or next((str(o.image.parent) for o in found.masks if o.image), "IMAGES")
    if found.pages:
        images = str(out / PICTURES)
        told = f"{counted(found.pages, 'page')} of stacks as pictures, to be opened with the files"
        yield _line("pictures", f"{told}: {images}")
    yield _line(
        "and back",
        f"python -m matssl.tools.annotations import {out} --format {name} --images {images} "
        f"--classes {out / CLASSES} --output_dir MASKS",
    )


def _line(word: str, text: str) -> str:
    return f"  {word:<13}{text}"
