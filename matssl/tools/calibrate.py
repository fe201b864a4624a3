"""Say how large the pixels are: ``python -m matssl.tools.calibrate FOLDER --length 100um --bar``.

The length of something in pixels, and what it is in reality, give the pixel size, which goes into
FOLDER/specimens.csv, where every command looks for it. --pixels says how many pixels --length is in
every image; --bar finds the drawn scale bar of each, whose value you read off it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core import paths
from matssl.core.errors import UserError, guard
from matssl.core.flags import Problem, flag
from matssl.core.parsing import parse_one
from matssl.core.wording import counted
from matssl.stages.settings import MOST_PAGES, PAGE_AUTO, PAGE_HELP, ToolSettings, length_problem

if TYPE_CHECKING:
    from matssl.data.readers import Micrograph
    from matssl.data.readers.scale_bar import ScaleBar

LISTED = 8
# Lengths of one scale bar in several pictures, and what metadata say of it, differ by less.
SAME, AGREES = 0.01, 0.03


def given_length_problem(text: str) -> str:
    """Return what is wrong with ``--length``, "" where nothing is."""
    return length_problem("length", text, "no length", "100um")


@dataclass(frozen=True)
class CalibrateSettings(ToolSettings):
    """Flags of the command."""

    folder: str = flag(
        "",
        "data",
        "images of one magnification",
        required=True,
        positional=True,
        leads=paths.images,
    )
    length: str = flag(
        "", "scale", "what the bar says, such as 100um", required=True, check=given_length_problem
    )
    pixels: float | None = flag(
        None, "scale", "how many pixels that is, in every image", low=1.0, high=1_000_000.0
    )
    bar: bool = flag(False, "scale", "find the drawn scale bar of each image and measure it")
    images: str = flag("*", "data", "only images whose path fits, such as '*_500x*' or 'S1/*'")
    page: int | None = flag(None, "data", PAGE_HELP, auto=PAGE_AUTO, low=1, high=MOST_PAGES)
    pictures: str | None = flag(
        None, "results", "write a contact sheet (PNG) that shows the scale bar taken in each image"
    )

    def problems(self) -> list[Problem]:
        """Return what does not go together."""
        if (self.pixels is None) == (not self.bar):
            told = "give either --pixels, how many pixels --length is, or --bar, to measure them"
            return [Problem(told, ("pixels", "bar"))]
        return []


SETTINGS = CalibrateSettings


@dataclass(frozen=True)
class Measured:
    """The scale of one image: pixels that ``--length`` is, None where no bar was found."""

    path: Path
    pixels: float | None
    bar: ScaleBar | None
    known: float | None


def main(argv: Sequence[str]) -> int:
    """Write the pixel sizes and say what they come from; returns 0, or 1 where one needs a look."""
    args = parse_one(
        SETTINGS,
        argv,
        __doc__ or "",
        problems=CalibrateSettings.problems,
        prog="python -m matssl.tools.calibrate",
    )
    from matssl.data import layouts, readers
    from matssl.data.preprocess import Preprocess
    from matssl.data.specimens.sizes import write_pixel_sizes
    from matssl.data.specimens.table import tables_of

    length = readers.parse_pixel_size(args.length)
    assert length is not None
    folder = Path(args.folder)
    if args.pictures:
        from matssl import contact_sheet

        contact_sheet.check_path(Path(args.pictures), folder)
    record = Preprocess.chosen(channels=1, page=args.page)
    chosen = [p for p in layouts.unlabelled(folder)[0] if _fits(p, folder, args.images)]
    if not chosen:
        raise UserError(f"no image of {folder} fits --images {args.images}")
    measured = [_measured(record.read(path), path, args.pixels) for path in chosen]
    sizes = {one.path: length / one.pixels for one in measured if one.pixels is not None}
    if not sizes:
        raise UserError(
            f"no scale bar is found in {counted(len(chosen), 'image')} of {folder} (first: "
            f"{chosen[0].name}); measure it in a viewer and give --pixels"
        )
    # A new table above it would take the place of one beside the images.
    tables = tables_of(sizes, folder)
    written = {
        table: write_pixel_sizes(table, {path: sizes[path] for path in images})
        for table, images in tables.items()
    }
    if args.pictures:
        _draw(measured, Path(args.pictures), args.length, length)
    for nm, count in Counter(f"{size:.5g} nm" for size in sizes.values()).most_common(LISTED):
        print(f"  pixel size   {nm} ({counted(count, 'image')})")
    for table, one in written.items():
        kept = f", {counted(one.others, 'other line')} as before" if one.others else ""
        told = f"{one.added} new, {one.changed} had another pixel size{kept}"
        print(f"  written      {table}: {counted(len(tables[table]), 'image')}, {told}")
        for line in _changes(one.before, sizes):
            print(f"  changed      {line}")
    doubts = _doubts(measured, length, args.pixels is None)
    for told in doubts:
        print(f"  warning      {told}")
    if args.pictures:
        print(f"  pictures     {args.pictures}")
    return 1 if doubts else 0


def _fits(path: Path, folder: Path, pattern: str) -> bool:
    """Return whether an image is meant by ``--images``."""
    return path.relative_to(folder).match(pattern)


def _measured(micrograph: Micrograph, path: Path, pixels: float | None) -> Measured:
    from matssl.data.readers import scale_bar

    if pixels is not None:
        return Measured(path, pixels, None, micrograph.pixel_size)
    bar = scale_bar.find(micrograph.pixels)
    return Measured(path, bar.pixels if bar else None, bar, micrograph.pixel_size)


def _changes(before: Mapping[Path, float], sizes: Mapping[Path, float]) -> list[str]:
    """Return in words which pixel size of the table became which."""
    steps: dict[str, list[str]] = {}
    for path, old in before.items():
        steps.setdefault(f"{old:.5g} nm -> {sizes[path]:.5g} nm", []).append(path.name)
    lines = [
        f"{step} ({counted(len(names), 'image')}: {_listed(names)})"
        for step, names in steps.items()
    ]
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"and {counted(more, 'other pair')} of sizes"] if more > 0 else [])


def _doubts(measured: Sequence[Measured], length: float, by_bar: bool) -> list[str]:
    """Return what needs a look, in words."""
    told = []
    without = [one.path.name for one in measured if one.pixels is None]
    if without:
        told.append(
            f"no scale bar found in {counted(len(without), 'image')} ({_listed(without)}): "
            "nothing is written for them; --pixels says it, --images takes them alone"
        )
    lengths = [one.pixels for one in measured if one.pixels is not None]
    if by_bar and max(lengths) > (1 + SAME) * min(lengths) + 2:
        told.append(
            f"the scale bars are {min(lengths):g} to {max(lengths):g} pixels long, and --length is "
            "taken for all of them; if they say different lengths, take them apart with --images"
        )
    other = [
        one.path.name
        for one in measured
        if one.pixels and one.known and abs(one.known * one.pixels / length - 1) > AGREES
    ]
    if other:
        told.append(
            f"the metadata of {counted(len(other), 'image')} say another pixel size "
            f"({_listed(other)}); specimens.csv beats them"
        )
    return told


def _draw(measured: Sequence[Measured], path: Path, told: str, length: float) -> None:
    """Write what was taken for the scale bar, on the images that hold it."""
    from matssl import contact_sheet
    from matssl.data import readers
    from matssl.pictures.contact import MOST, Cell

    cells = []
    for one in measured[:MOST]:
        micrograph = readers.read(one.path)
        height, width = micrograph.pixels.shape[:2]
        image = contact_sheet.gray(micrograph.pixels, height)
        marks: tuple[tuple[float, float, float, float], ...] = ()
        if one.bar is not None:
            row = one.bar.row / height
            marks = ((one.bar.left / width, row, one.bar.right / width, row),)
        text, wrong = "", "" if one.pixels else "no scale bar found"
        if one.pixels:
            text = f"{one.pixels:g} px = {told}: {length / one.pixels:.5g} nm a pixel"
        cells.append(Cell(image, one.path.name, text, marks=marks, wrong=wrong))
    left = len(measured) - len(cells)
    more = f"; {left} more are not shown" if left else ""
    title = f"{counted(len(measured), 'image')}, --length {told}"
    contact_sheet.save(cells, path, title, f"What was measured{more}", "taken for the scale bar")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


if __name__ == "__main__":
    sys.exit(guard(main))
