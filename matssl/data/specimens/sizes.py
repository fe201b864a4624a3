"""Pixel sizes put into ``specimens.csv``; whatever else stands in it stays as it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.run_folder import atomic_write_bytes
from matssl.core.tables import cells_text, quoted
from matssl.core.textfiles import SEPARATORS, read_text
from matssl.core.wording import counted
from matssl.data.specimens.table import Row, heading, read_table, relative, write_table

COLUMN = "pixel_size"


@dataclass(frozen=True)
class Written:
    """What became of a table.

    Attributes:
        added: lines for images that it did not name.
        changed: lines that said another pixel size.
        others: lines that were left as they are.
        before: the pixel size that each of the changed lines said, nm, by image.
    """

    added: int
    changed: int
    others: int
    before: Mapping[Path, float] = field(default_factory=dict)


def write_pixel_sizes(path: Path, sizes: Mapping[Path, float]) -> Written:
    """Put pixel sizes into a table of specimens; it is made where there is none.

    Other columns and lines keep their text, a table that names specimens gets no line without one.

    Args:
        path: the table; paths in it start from its folder.
        sizes: nm, by image.

    Raises:
        UserError: the table cannot be read or written, or names specimens and lacks images.
    """
    folder = path.parent
    if not path.exists():
        rows = [Row(relative(image, folder), pixel_size=size) for image, size in sizes.items()]
        write_table(path, rows)
        return Written(len(rows), 0, 0)
    table = read_table(path)
    known = table.of(list(sizes), folder, lambda: _all_of(folder))
    missing = [image for image in sizes if image not in known]
    if missing and table.names_specimens:
        raise UserError(
            f"{path} names no specimen for {counted(len(missing), 'image')} (first: "
            f"{missing[0].name}); add their lines, or take the others alone with --images"
        )
    head, lines, separator, start = _raw(path)
    column = next((i for i, cell in enumerate(head) if heading(cell)[0] == COLUMN), len(head))
    if column == len(head):
        head.append(COLUMN)
    numbers = {row.image: number for number, row in enumerate(table.rows)}
    changed: dict[Path, float] = {}
    for image, row in known.items():
        line, size = lines[numbers[row.image]], sizes[image]
        line += [""] * (column + 1 - len(line))
        before = row.pixel_size
        if before is not None and abs(before / size - 1) > 1e-6:
            changed[image] = before
        line[column] = _text(size)
    place = next(i for i, cell in enumerate(head) if heading(cell)[0] == "image")
    for image in missing:
        line = [""] * len(head)
        line[place], line[column] = quoted(relative(image, folder)), _text(sizes[image])
        lines.append(line)
    text = start + cells_text([head, *lines], separator)
    try:
        atomic_write_bytes(path, b"\xef\xbb\xbf" + text.encode("utf-8"))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return Written(len(missing), len(changed), len(table.rows) - len(known), changed)


def _raw(path: Path) -> tuple[list[str], list[list[str]], str, str]:
    """Return heading, lines, separator and a leading ``sep=`` line of a table, cells untouched."""
    text = read_text(path, legacy=True)
    lines = text.splitlines()
    start = ""
    if lines and lines[0].strip().strip('"').lower().startswith("sep="):
        start = lines.pop(0) + "\n"
    first = next(line for line in lines if line.strip())
    named = start.strip().strip('"')[4:5]
    separator = named or max(SEPARATORS, key=first.count)
    rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=separator))
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    return rows[0], rows[1:], separator, start


def _all_of(folder: Path) -> list[Path]:
    from matssl.data import readers

    return readers.find_images(folder)


def _text(size: float) -> str:
    return f"{size:.9g}nm"
