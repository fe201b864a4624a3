"""What was measured as files: CSV, JSON, one workbook, and the protocol of how it came about."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matssl
from matssl.core import flags
from matssl.core.run_folder import RunFolder, atomic_path, atomic_write_bytes
from matssl.core.tables import Row, csv_text, quoted
from matssl.data import readers
from matssl.stages.measure import roi
from matssl.stages.measure.inputs import Source
from matssl.stages.measure.kind import Measured
from matssl.stages.measure.settings import MeasureSettings

if TYPE_CHECKING:
    import pandas as pd

# Rows of a sheet: a spreadsheet with more opens slowly, and takes gigabytes while it is written.
# Letters of its name.
SHEET_ROWS, SHEET_NAME = 50_000, 31
# Rows that become text at a time.
CHUNK = 10_000
# Spreadsheets of Windows take a CSV without this mark for another encoding.
MARK = "\ufeff"


def write(
    folder: RunFolder,
    found: Mapping[str, Measured],
    source: Source,
    settings: MeasureSettings,
) -> None:
    """Write all tables, measure.json, measure.xlsx and protocol.json.

    Args:
        folder: of the results.
        found: by measurement.
        source: of the masks, whose files go into the protocol.
        settings: of the command.
    """
    rows = specimens(found)
    sheets: dict[str, Sequence[Row]] = {"specimens": rows}
    for one in found.values():
        sheets |= one.tables
    if source.left:
        sheets["roi"] = roi.rows(source.left)
    for name, table in sheets.items():
        write_csv(folder.path(f"{name}.csv"), table)
    folder.write_json("measure.json", {name: one.summary for name, one in found.items()})
    atomic_write_bytes(folder.path("measure.xlsx"), workbook(sheets))
    folder.write_json("protocol.json", protocol(found, source, settings))


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write a table as CSV, so many rows at a time: a million of them are no text in memory."""
    heads = columns(rows)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(MARK.encode())
        for start in range(0, max(len(rows), 1), CHUNK):
            text = csv_text(rows[start : start + CHUNK], heads, head=start == 0)
            # Of names that are none of an encoding, each stray byte as an escape.
            file.write(text.encode("utf-8", "backslashreplace"))


def specimens(found: Mapping[str, Measured]) -> list[dict[str, object]]:
    """Return a row a specimen and class with what every measurement says of it."""
    joined: dict[tuple[object, object], dict[str, object]] = {}
    for one in found.values():
        for row in one.specimens:
            joined.setdefault((row["specimen"], row["class"]), {}).update(row)
    return list(joined.values())


def columns(rows: Sequence[Row]) -> list[str]:
    """Return the columns of rows of which some have more than others, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row)) or ["image"]


def workbook(sheets: Mapping[str, Sequence[Row]]) -> bytes:
    """Return tables as an XLSX file: a sheet a table, and one a specimen with the rows of all.

    Args:
        sheets: rows by the name of their table; "specimens" comes first.
    """
    import pandas as pd

    data = io.BytesIO()
    parts: dict[str, Sequence[Row]] = dict(sheets)
    for specimen in dict.fromkeys(str(row["specimen"]) for row in sheets["specimens"]):
        own = [r for r in sheets["specimens"] if str(r["specimen"]) == specimen]
        parts[f"specimen {specimen}"] = own
    with pd.ExcelWriter(data, engine="xlsxwriter") as file:
        used: set[str] = set()
        for name, rows in parts.items():
            frame = _frame(_fitting(name, rows))
            sheet = _sheet(name, used)
            frame.to_excel(file, sheet_name=sheet, index=False)
            _fit(file, sheet, frame)
    return data.getvalue()


def _fitting(name: str, rows: Sequence[Row]) -> Sequence[Row]:
    """Return the rows that a sheet takes; of more the first, and a line that says where all are."""
    if len(rows) <= SHEET_ROWS:
        return rows
    told = f"the first {SHEET_ROWS:,} of {len(rows):,} rows; all of them: {name}.csv"
    return [*rows[:SHEET_ROWS], {columns(rows[:1])[0]: told}]


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    import pandas as pd

    cells = [
        {name: quoted(v) if isinstance(v, str) else v for name, v in row.items()} for row in rows
    ]
    return pd.DataFrame(cells, columns=columns(rows))


def _fit(file: pd.ExcelWriter, sheet: str, frame: pd.DataFrame) -> None:
    """Make columns as wide as their heads, and keep these in sight."""
    page = file.sheets[sheet]
    page.freeze_panes(1, 0)
    for number, name in enumerate(frame.columns):
        page.set_column(number, number, max(10, min(40, len(str(name)) + 2)))


def _sheet(name: str, used: set[str]) -> str:
    """Return a name that a workbook takes: no brackets or slashes, 31 letters, none twice."""
    plain = re.sub(r"[\[\]:*?/\\]", "_", name).strip("'")[:SHEET_NAME] or "sheet"
    number = 1
    while plain.lower() in used:
        number += 1
        plain = f"{plain[: SHEET_NAME - 4]} ({number})"[:SHEET_NAME]
    used.add(plain.lower())
    return plain


def protocol(
    found: Mapping[str, Measured], source: Source, settings: MeasureSettings
) -> dict[str, object]:
    """Return by what rule, version and flags, and from which files, the numbers came about."""
    return {
        "version": matssl.__version__,
        "input": str(source.root),
        "what": source.what,
        "settings": flags.to_dict(settings),
        "rules": {name: one.rule for name, one in found.items()},
        "specimens": source.grouping.text,
        "sha256": {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in dict.fromkeys(map(readers.file_of, (*source.files, *source.regions)))
        },
    }
