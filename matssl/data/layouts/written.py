"""What was found in a folder, written to files that can be edited and that are read again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import atomic_write_bytes
from matssl.core.tables import csv_text
from matssl.data import masks
from matssl.data.masks import ClassTable
from matssl.data.readers import file_of
from matssl.data.specimens.table import FILE_NAME, Row, tables_of, write_table

if TYPE_CHECKING:
    from matssl.data.layouts import Dataset

CLASSES, SPLITS = "classes.yaml", "splits.csv"


def write(dataset: Dataset, pixel_sizes: Mapping[Path, float | None]) -> list[str]:
    """Write specimens.csv, classes.yaml and splits.csv; return in words what became of each.

    The first two are read from the folder by every command, the last with ``--splits``. A file
    that is there already is left as it is, and a table of specimens beside the images, too.

    Args:
        dataset: as it was found.
        pixel_sizes: nm, of each image where it is known.

    Raises:
        UserError: the folder cannot be written, or is one image.
    """
    root = dataset.root
    if not root.is_dir():
        raise UserError(f"{root} is one image; --write_layout needs a folder")
    labelled = dataset.table is not None
    # A second table above it would take the place of one beside the images.
    tables = sorted(tables_of([pair.image for pair in dataset.pairs], root))
    beside = next((path for path in tables if path.is_file()), root / FILE_NAME)
    said = [_new(beside, lambda path: _specimens(path, dataset, pixel_sizes))]
    if dataset.table is not None:
        table = dataset.table
        there = masks.class_file(None, root)
        text = class_text(table)
        if there is not None:
            said.append(f"kept    {there}, which was there")
        else:
            said.append(_new(root / CLASSES, lambda path: _write(path, text.encode("utf-8"))))
    if labelled:
        told = _new(root / SPLITS, lambda path: _write(path, _splits(dataset)))
        said.append(f"{told}; used with --splits {root / SPLITS}")
    return said


def class_text(table: ClassTable) -> str:
    """Return a class table as the YAML file that means it."""
    lines = ["# Names of the classes, and the values that mean them in the masks.", "classes:"]
    for place, one in enumerate(table.classes):
        values = ", ".join(map(_value, one.values))
        listed = values if len(one.values) == 1 else f"[{values}]"
        lines.append(f"  {_quoted(one.name)}: {'rest' if place == table.rest_index else listed}")
    ignored = [_value(value) for value in table.ignore_values]
    ignored += ["rest"] if table.rest_index == IGNORE else []
    if ignored:
        lines.append(f"ignore: [{', '.join(ignored)}]")
    return "\n".join(lines) + "\n"


def _value(value: int | str) -> str:
    return str(value) if isinstance(value, int) else _quoted(value)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _specimens(path: Path, dataset: Dataset, pixel_sizes: Mapping[Path, float | None]) -> None:
    rows, frames = dataset.grouping.rows, dataset.grouping.sequences.frames
    lines: dict[Path, Row] = {}
    for pair in dataset.pairs:
        # A stack has one line, whose frames are its pages.
        file, frame = file_of(pair.image), frames.get(pair.image)
        lines[file] = Row(
            _below(file, dataset.root),
            pair.group,
            rows[pair.image].field if pair.image in rows else "",
            rows[pair.image].magnification if pair.image in rows else "",
            pixel_sizes.get(pair.image),
            "" if frame is None else frame.sequence,
            None if frame is None or file != pair.image else frame.number,
        )
    write_table(path, lines.values())


def _splits(dataset: Dataset) -> bytes:
    rows = [{"image": _below(p.image, dataset.root), "split": p.split} for p in dataset.pairs]
    # A spreadsheet takes the mark to know that names are UTF-8.
    return b"\xef\xbb\xbf" + csv_text(rows, ("image", "split")).encode("utf-8")


def _below(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _new(path: Path, make: Callable[[Path], None]) -> str:
    if path.exists():
        return f"kept    {path}, which was there"
    try:
        make(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return f"written {path}"


def _write(path: Path, data: bytes) -> None:
    atomic_write_bytes(path, data)
