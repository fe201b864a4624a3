"""``specimens.csv``: what a user says of the images of a folder, one line an image.

    image,specimen,field,magnification,pixel_size
    S1/img_01.tif,steel A,1,500x,12.5nm

``image`` is the path from the folder the table lies in, or the name where it is the only one there.
Only ``image`` must be filled. Where one line names a specimen, all must. ``sequence`` and ``frame``
say which pictures follow each other (:mod:`matssl.data.specimens.sequences`). The file may come out
of a spreadsheet: comma, semicolon or tab, decimal commas, backslashes, any capitals.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_bytes
from matssl.core.tables import csv_text
from matssl.core.textfiles import read_rows
from matssl.data.readers.units import parse_pixel_size

FILE_NAME = "specimens.csv"
COLUMNS = ("image", "specimen", "field", "magnification", "pixel_size")
# Written where a picture has one.
OF_SEQUENCES = ("sequence", "frame")
LISTED = 3
# What people head the columns with; a unit may follow in brackets or behind an underscore.
_HEADS = {
    "image": ("image", "images", "file", "filename", "name", "path", "picture", "bild", "datei"),
    "specimen": ("specimen", "specimens", "sample", "samples", "sample_key", "probe", "group"),
    "field": ("field", "field_of_view", "region", "feld"),
    "magnification": ("magnification", "mag", "vergroesserung"),
    "pixel_size": ("pixel_size", "pixelsize", "pixel", "px_size", "pixelgroesse"),
    "sequence": ("sequence", "sequences", "sequenz"),
    "frame": ("frame", "frames", "frame_number", "slice"),
}
_UNIT = re.compile(r"^(.*?)[\s_]*[\[(/]?\s*(nm|um|µm|μm|mm|pm|å|angstrom)\s*[\])]?$")


@dataclass(frozen=True)
class Row:
    """What the table says of one image.

    Attributes:
        image: path from the folder of the table, with slashes.
        specimen: "" where the table names none at all.
        field: place on the specimen, "" where unknown.
        magnification: as written, "" where unknown.
        pixel_size: nm, None where unknown.
        sequence: that it is a frame of, "" where none is named.
        frame: its number there, None where the table does not say it.
    """

    image: str
    specimen: str = ""
    field: str = ""
    magnification: str = ""
    pixel_size: float | None = None
    sequence: str = ""
    frame: int | None = None


@dataclass(frozen=True)
class SpecimenTable:
    """A table as it was read.

    Attributes:
        source: the file.
        rows: in its order.
    """

    source: Path
    rows: tuple[Row, ...]

    @property
    def names_specimens(self) -> bool:
        """Whether it says which images are of one specimen, or pixel sizes alone."""
        return any(row.specimen for row in self.rows)

    def of(
        self, paths: Sequence[Path], folder: Path, others: Callable[[], Sequence[Path]] = tuple
    ) -> dict[Path, Row]:
        """Return the row of each image that has one.

        Args:
            paths: images.
            folder: from which the table's paths start.
            others: further images of the folder, whose rows may be there and are not returned.

        Raises:
            UserError: a row fits no image, or several; two rows fit one.
        """
        files = _by_name(paths, folder)
        found: dict[Path, Row] = {}
        absent, doubtful, twice = [], [], []
        for row in self.rows:
            fitting = _fitting(row.image, files)
            if not fitting:
                absent.append(row.image)
            elif len(fitting) > 1:
                doubtful.append(row.image)
            elif fitting[0] in found:
                twice.append(row.image)
            else:
                found[fitting[0]] = row
        if absent:
            files = _by_name(others(), folder)
            absent = [image for image in absent if not _fitting(image, files)]
        told = (
            (absent, f"names images that are not in {folder}", "correct or remove the lines"),
            (doubtful, "names images that several files fit", "write their paths from the folder"),
            (twice, "has several lines for one image", "remove all but one"),
        )
        for names, what, remedy in told:
            if names:
                raise UserError(f"{self.source} {what} ({_listed(names)}); {remedy}")
        return found


def read_table(path: Path | str, flag: str = "") -> SpecimenTable:
    """Return the table in a CSV file.

    Args:
        path: of the file.
        flag: that leads to it, for messages; "" where it lies in its folder.

    Raises:
        UserError: it cannot be read, has no column ``image``, two lines for one image, a specimen
            for some lines only, or a pixel size that is none; the lines are named.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no table of specimens {path}")
    rows = read_rows(path, f"{flag}: the table of specimens" if flag else "the table of specimens")
    if not rows:
        raise UserError(f"{path} has no line for an image; it needs the columns image and specimen")
    heads = {name: heading(name) for name in rows[0]}
    names = [name for name, _ in heads.values()]
    if "image" not in names:
        raise UserError(
            f"{path} has no column image (its columns: {_listed(list(heads))}); it needs image and "
            "specimen, and may have field, magnification and pixel_size"
        )
    double = sorted({name for name in names if name and names.count(name) > 1})
    if double:
        raise UserError(f"{path} has two columns that say the {double[0]}; remove one")
    unit = next((unit for name, unit in heads.values() if name == "pixel_size"), "")
    table = []
    for row in rows:
        values = {heads[head][0]: unicodedata.normalize("NFC", cell) for head, cell in row.items()}
        image = values.get("image", "")
        if not image:
            told = ", ".join(cell for cell in row.values() if cell)
            raise UserError(f"{path} has a line without an image ({told[:60]})")
        table.append(
            Row(
                _slashes(image),
                values.get("specimen", ""),
                values.get("field", ""),
                values.get("magnification", ""),
                _size(values.get("pixel_size", ""), unit, path, image),
                values.get("sequence", ""),
                _frame(values.get("frame", ""), values.get("sequence", ""), path, image),
            )
        )
    _check(table, path)
    return SpecimenTable(path, tuple(table))


def write_table(path: Path | str, rows: Iterable[Row]) -> None:
    """Write rows so that a spreadsheet and :func:`read_table` read them: all columns, a BOM.

    Raises:
        UserError: the file cannot be written.
    """
    path, rows = Path(path), list(rows)
    lines = [
        {
            "image": row.image,
            "specimen": row.specimen,
            "field": row.field,
            "magnification": row.magnification,
            "pixel_size": "" if row.pixel_size is None else f"{row.pixel_size:.9g}nm",
            "sequence": row.sequence,
            "frame": "" if row.frame is None else str(row.frame),
        }
        for row in rows
    ]
    columns = (*COLUMNS, *OF_SEQUENCES) if any(row.sequence for row in rows) else COLUMNS
    text = csv_text([{name: line[name] for name in columns} for line in lines], columns)
    try:
        atomic_write_bytes(path, b"\xef\xbb\xbf" + text.encode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def tables_of(images: Iterable[Path], root: Path) -> dict[Path, list[Path]]:
    """Return the images by the table that speaks for them.

    It is the highest that there is on the way from the root to the image; where there is none, one
    of the root would be.
    """
    found: dict[Path, list[Path]] = {}
    for image in images:
        folders = [f for f in reversed(image.parents) if f == root or root in f.parents]
        tables = [folder / FILE_NAME for folder in folders]
        there = next((table for table in tables if table.is_file()), root / FILE_NAME)
        found.setdefault(there, []).append(image)
    return found


def heading(cell: str) -> tuple[str, str]:
    """Return which column a heading means ("" for none of ours) and the unit it names."""
    text = cell.lower().strip()
    match = _UNIT.match(text)
    for words, unit in ((text, ""), (match[1], match[2]) if match else ("", "")):
        plain = re.sub(r"[\s\-.]+", "_", words.strip(" _[]()"))
        for name, known in _HEADS.items():
            if plain in known:
                return name, unit if name == "pixel_size" else ""
    return "", ""


def _size(cell: str, unit: str, path: Path, image: str) -> float | None:
    """Return a pixel size in nm; a decimal comma is a point."""
    if not cell:
        return None
    text = cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell
    try:
        float(text)
        text += unit
    except ValueError:
        pass
    try:
        size = parse_pixel_size(text)
    except UserError:
        size = None
    if size is None or not math.isfinite(size):
        raise UserError(
            f"{path}, {image[:60]}: {cell[:40]!r} is no pixel size; write a number and its unit, "
            "such as 12.5nm, or head the column pixel_size_nm"
        )
    return size


def _frame(cell: str, sequence: str, path: Path, image: str) -> int | None:
    """Return the number of a frame."""
    if not cell:
        return None
    number = cell.removesuffix(".0")
    if not (number.isascii() and number.isdigit() and len(number) < 10 and sequence):
        remedy = "a whole number" if sequence else "the name of its sequence, too"
        raise UserError(
            f"{path}, {image[:60]}: the column frame says {cell[:40]!r}; write {remedy}"
        )
    return int(number)


def _check(rows: Sequence[Row], path: Path) -> None:
    """Refuse two lines for one image, and a specimen that some lines lack."""
    seen: dict[str, str] = {}
    twice = []
    for row in rows:
        key = _plain(row.image)
        if key in seen:
            twice.append(row.image)
        seen[key] = row.image
    if twice:
        raise UserError(
            f"{path} has several lines for one image ({_listed(twice)}); remove all but one"
        )
    without = [row.image for row in rows if not row.specimen]
    if without and len(without) < len(rows):
        raise UserError(
            f"{path} names no specimen for {len(without)} of {len(rows)} images "
            f"({_listed(without)}); fill the column, or leave it empty throughout"
        )


def _by_name(paths: Sequence[Path], folder: Path) -> dict[str, list[tuple[Path, str]]]:
    """Return the files of each last name, with their paths from the folder."""
    files: dict[str, list[tuple[Path, str]]] = {}
    for path in paths:
        name = _plain(relative(path, folder))
        for key in _keys(name):
            files.setdefault(key, []).append((path, name))
    return files


def _fitting(image: str, files: dict[str, list[tuple[Path, str]]]) -> list[Path]:
    """Return the files that a name in the table can mean."""
    wanted = _plain(image)
    for key in _keys(wanted):
        # With another ending it is the same picture; in another folder it is another one.
        near = [(p, name) for p, name in files.get(key, []) if _agree(wanted, name)]
        if near:
            depth = wanted.count("/")
            exact = [path for path, name in near if name.count("/") == depth]
            return exact if len(exact) == 1 else [path for path, _ in near]
    return []


def _agree(first: str, second: str) -> bool:
    """Return whether one path ends as the other does, whatever their last names end with."""
    one, two = first.split("/")[-2::-1], second.split("/")[-2::-1]
    common = min(len(one), len(two))
    return one[:common] == two[:common]


def _keys(name: str) -> list[str]:
    """Return the last name of a path, and the same without its ending."""
    last = name.rsplit("/", 1)[-1]
    return list(dict.fromkeys((last, os.path.splitext(last)[0])))


def _plain(name: str) -> str:
    """Return a path as it is compared: capitals and the two ways of an umlaut are alike."""
    return unicodedata.normalize("NFC", _slashes(name)).lower()


def relative(path: Path, folder: Path) -> str:
    """Return what a table in a folder calls an image."""
    try:
        return path.relative_to(folder).as_posix()
    except ValueError:
        return path.as_posix()


def _slashes(name: str) -> str:
    return re.sub(r"^(\./)+", "", name.strip().replace("\\", "/"))


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
