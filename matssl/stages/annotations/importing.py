"""Masks from annotation files: ``annotations import``."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_bytes, atomic_write_text
from matssl.core.tables import csv_text
from matssl.core.wording import counted, cut
from matssl.data import readers
from matssl.data.annotations import (
    FORMATS,
    Annotations,
    Choices,
    Drawing,
    format_name,
    module_of,
    painting,
    recognised,
)
from matssl.data.annotations.classes import Classes, of_drawings, renamed
from matssl.data.annotations.pairing import Paired, pair, size_of
from matssl.data.annotations.raster import Painted
from matssl.stages.annotations.settings import ImportSettings
from matssl.stages.drawing import mask_png

CLASSES, TABLE = "classes.yaml", "import.csv"
SHOWN = 3
# Formats that leave open what a flag answers.
ACTS_WITH = {
    "annotator": ("labelstudio", "ome_zarr", "ome_zarr_05"),
    "attribute": ("via", "labelstudio"),
    "boxes": ("coco", "yolo"),
}


@dataclass
class Told:
    """What is counted over all pictures, to be said or asked at the end."""

    overlaps: Counter[tuple[str, str]] = field(default_factory=Counter)
    overlapping: list[tuple[Path, int]] = field(default_factory=list)
    empty: Counter[str] = field(default_factory=Counter)
    no_area: str = ""
    claimed: int = 0
    unordered: bool = False
    pixels: int = 0
    covered: int = 0
    bare: int = 0
    rows: list[dict[str, object]] = field(default_factory=list)


def run(args: ImportSettings, argv: Sequence[str]) -> None:
    """Write the masks, their class file and what they were made of.

    Raises:
        UserError: files that are damaged or leave something open; nothing is written then.
    """
    source, images, out = Path(args.annotations), Path(args.images), Path(args.output_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give another --output_dir")
    name = chosen_format(source, args.format)
    _check_flags(args, name)
    choices = Choices(args.annotator, args.attribute, args.boxes or "", args.label)
    annotations = module_of(name).read(source, choices)
    pictures = readers.find_images(images)
    paired = pair(annotations.drawings, pictures)
    if not paired.found:
        raise UserError(_nothing(source, images, annotations, paired))
    home = images if images.is_dir() else images.parent
    _check_names(paired, home, args.unannotated)
    classes = of_drawings(
        [drawing for _, drawing in paired.found],
        annotations.labels,
        args.classes,
        renamed(args.rename),
    )
    uncovered = args.uncovered or annotations.uncovered
    told = Told()
    elsewhere = set(map(id, paired.absent))
    here = [drawing for drawing in annotations.drawings if id(drawing) not in elsewhere]
    told.no_area = painting.without_area(here)
    with _folder(out) as place:
        for path, drawing, painted in painting.painted(paired, classes, uncovered, args.overlap):
            _count(told, path.relative_to(home), drawing, painted, classes)
            _write(place / path.relative_to(home), painted.mask)
        if told.unordered and args.overlap is None:
            raise UserError(_question(told, name))
        if args.unannotated != "skip":
            value = IGNORE if args.unannotated == "ignore" else classes.bare
            for path in paired.bare:
                mask = np.full(size_of(path), value, np.uint8)
                told.bare += int(np.count_nonzero(mask == classes.bare))
                _write(place / path.relative_to(home), mask)
        head = ["Values of the masks beside this file.", f"Made by: annotations {' '.join(argv)}"]
        atomic_write_text(place / CLASSES, classes.text(told.bare > 0, head))
        atomic_write_text(place / TABLE, csv_text(told.rows))
    for line in _report(args, name, annotations, paired, classes, told, uncovered):
        print(line)


def chosen_format(source: Path, said: str | None) -> str:
    """Return the format that a flag names or the files show.

    Raises:
        UserError: none is named, and the files show none or several.
    """
    if said is not None:
        return format_name(said)
    found = recognised(source)
    if len(found) == 1:
        return found[0]
    known = ", ".join(FORMATS)
    if not found:
        packed = "; unpack the archive and give its folder" if source.suffix == ".zip" else ""
        raise UserError(f"{source} holds no annotations of a known format ({known}){packed}")
    raise UserError(f"{source} holds annotations of {' and '.join(found)}; --format says which")


def _check_flags(args: ImportSettings, name: str) -> None:
    """Refuse flags that a format has no use for.

    Raises:
        UserError: there is one.
    """
    for flag, formats in ACTS_WITH.items():
        if getattr(args, flag) and name not in formats:
            raise UserError(f"--{flag} acts with {', '.join(formats)}, and these are of {name}")


def _nothing(source: Path, images: Path, annotations: Annotations, paired: Paired) -> str:
    if not annotations.drawings:
        return f"{source} names no picture"
    if len(paired.absent) == len(annotations.drawings):
        first = cut(paired.absent[0].picture)
        return (
            f"none of the {counted(len(annotations.drawings), 'picture')} that {source} names is "
            f"in {images} (first: {first}); --images is the folder of the annotated pictures"
        )
    bare: Counter[str] = Counter()
    for drawing in annotations.drawings:
        for (kind, _), number in drawing.no_area.items():
            bare[kind] += number
    lines = ", ".join(f"{number} of the kind {kind}" for kind, number in bare.items())
    return f"{source} holds no shape with an area" + (f" (without area: {lines})" if lines else "")


def _check_names(paired: Paired, home: Path, unannotated: str) -> None:
    """Refuse pictures whose masks would have one name.

    Raises:
        UserError: there are some.
    """
    paths = [path for path, _ in paired.found]
    paths += paired.bare if unannotated != "skip" else ()
    names: dict[Path, Path] = {}
    for path in paths:
        other = names.setdefault(path.relative_to(home).with_suffix(""), path)
        if other is not path:
            raise UserError(
                f"{other} and {path.name} differ by their ending alone, and so do their masks; "
                "give them other names, or take one out"
            )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes ``out`` at the end; without an end nothing is left."""
    above = out.resolve().parent
    while not above.is_dir():
        above = above.parent
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:32]}.", dir=above) as name:
        place = Path(name) / "masks"
        place.mkdir()
        yield place
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            out.rmdir()
        place.rename(out)


def _write(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path.with_suffix(".png"), mask_png(mask))


def _count(told: Told, path: Path, drawing: Drawing, painted: Painted, classes: Classes) -> None:
    """Add what was seen of one picture."""
    shared = painted.claimed
    told.claimed += shared
    told.overlaps.update(painted.overlaps)
    told.empty.update(painted.empty)
    told.pixels += painted.mask.size
    told.covered += painted.covered
    told.bare += int(np.count_nonzero(painted.mask == classes.bare))
    if shared:
        told.overlapping.append((path, shared))
        told.unordered |= not drawing.ordered
    by_value = np.bincount(painted.mask.ravel(), minlength=IGNORE + 1)
    row: dict[str, object] = {"picture": path.as_posix(), "annotation": drawing.source.name}
    row |= {"rows": painted.mask.shape[0], "columns": painted.mask.shape[1]}
    row |= {"shapes": len(drawing.shapes), "without area": sum(drawing.no_area.values())}
    row |= {"without a pixel": sum(painted.empty.values()), "claimed twice (px)": shared}
    row["not covered (px)"] = painted.mask.size - painted.covered
    row |= {f"{name} (px)": int(by_value[value]) for name, value in classes.numbers.items()}
    told.rows.append(row | {"ignored (px)": int(by_value[IGNORE])})


def _question(told: Told, name: str) -> str:
    pairs = sorted(told.overlaps.items(), key=lambda item: -item[1])
    (one, other), number = pairs[0]
    path, most = max(told.overlapping, key=lambda item: item[1])
    return (
        f"two classes claim {told.claimed:,} pixels of "
        f"{counted(len(told.overlapping), 'picture')} (most, {most:,}, in {path.as_posix()}; "
        f"{number:,} between {cut(one, 60)} and {cut(other, 60)}), and {name} does not say which "
        "lies above: overlap is settled by --overlap last, first, smallest, largest or ignore"
    )


def _report(
    args: ImportSettings,
    name: str,
    annotations: Annotations,
    paired: Paired,
    classes: Classes,
    told: Told,
    uncovered: str,
) -> Iterator[str]:
    """Yield what was done and what was taken for what."""
    drawings = [drawing for _, drawing in paired.found]
    shapes = Counter(shape.kind for drawing in drawings for shape in drawing.shapes)
    kinds = ", ".join(f"{number} {kind}" for kind, number in shapes.most_common())
    how = "" if args.format else ", told from the files"
    yield _line("format", f"{name}{how}: {counted(len(drawings), 'picture')}, {kinds}")
    values = painting.numbered(classes)
    listed = "in the files' order" if annotations.labels else "by the alphabet"
    yield _line(
        "classes", values + ("" if args.classes else f" (numbered {listed}; --classes fixes them)")
    )
    merged = [f"{old} as {new}" for old, new in renamed(args.rename).items()]
    if merged:
        yield _line("renamed", ", ".join(merged))
    bare = told.pixels - told.covered
    if bare:
        what = painting.not_drawn(classes, uncovered)
        yield _line(
            "not drawn", f"{100 * bare / told.pixels:.3g} % of the pixels: taken for {what}"
        )
    if told.overlapping:
        rule = f"--overlap {args.overlap}" if args.overlap else f"later ones lie above in {name}"
        where = counted(len(told.overlapping), "picture")
        yield _line("overlap", f"{told.claimed:,} pixels of {where} claimed by two classes: {rule}")
    if told.no_area:
        yield _line("left out", f"without area: {told.no_area}")
    if told.empty:
        parts = _amounts(told.empty)
        yield _line("left out", f"shapes that hold no centre of a pixel: {parts}")
    if absent := painting.absent(paired):
        yield _line("not there", absent)
    if paired.bare:
        shown = ", ".join(path.name for path in paired.bare[:SHOWN])
        shown += ", ..." if len(paired.bare) > SHOWN else ""
        got = {"skip": "no mask (--unannotated background or ignore gives one)"}
        what = got.get(args.unannotated, f"a mask of {args.unannotated}")
        many = counted(len(paired.bare), "picture")
        yield _line("unannotated", f"{many} without a shape: {shown}: {what}")
    for note in (*annotations.notes, *paired.notes, *classes.notes):
        yield _line("note", note)
    masks = len(paired.found) + (len(paired.bare) if args.unannotated != "skip" else 0)
    out = Path(args.output_dir)
    yield _line("written", f"{counted(masks, 'mask')}, {CLASSES} and {TABLE} in {out}")


def _line(word: str, text: str) -> str:
    return f"  {word:<13}{text}"


def _amounts(numbers: Mapping[str, int]) -> str:
    parts = [f"{n} {cut(what, 80)}" for what, n in numbers.items()]
    return ", ".join(parts[: 2 * SHOWN]) + (", ..." if len(parts) > 2 * SHOWN else "")
