"""Tables as CSV, and numbers as tables show them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence

from matssl.core.textfiles import FORMULA

# Significant digits of a number in a table.
DIGITS = 6

Row = Mapping[str, object]


def csv_text(
    rows: Sequence[Row],
    columns: Sequence[str] | None = None,
    head: bool = True,
    digits: int | None = DIGITS,
) -> str:
    """Return rows as CSV; NaN and None leave their cell empty.

    Text that begins like a formula (= + - @) gets an apostrophe before it, which
    :func:`matssl.core.textfiles.read_rows` takes off again.

    Args:
        rows: by column name.
        columns: their order; that of the first row when None.
        head: whether the names of the columns come first.
        digits: significant digits of floats; None writes all that tell a float from others.
    """
    text = io.StringIO()
    if columns is None:
        columns = list(rows[0]) if rows else []
    table = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    if head:
        # A class may be called =SUM(A1), and heads a column.
        table.writerow({name: quoted(name) for name in columns})
    for row in rows:
        table.writerow({name: _cell(value, digits) for name, value in row.items()})
    return text.getvalue()


def cells_text(lines: Sequence[Sequence[str]], separator: str = ",") -> str:
    """Return lines of cells as CSV, each cell as it is: of a table that a user wrote and we amend.

    Args:
        lines: the heading first.
        separator: of the columns.
    """
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows(lines)
    return text.getvalue()


def filled(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return rows with the columns of the longest one; what a row lacks is None."""
    columns = max(rows, key=len, default={})
    return [{name: row.get(name) for name in columns} for row in rows]


def percent(share: float, half_width: float = math.nan, digits: int = 1) -> str:
    """Return a share in per cent, with the half width of its interval where there is one.

    Args:
        share: 0.123 becomes "12.3".
        half_width: 0.004 adds " ± 0.4"; NaN adds nothing.
        digits: behind the point.
    """
    text = f"{100 * share:.{digits}f}"
    return text if math.isnan(half_width) else f"{text} ± {100 * half_width:.{digits}f}"


def _cell(value: object, digits: int | None) -> object:
    if isinstance(value, float):
        if math.isnan(value):
            return ""
        return value if digits is None else f"{value:.{digits}g}"
    if isinstance(value, str):
        return quoted(value)
    return "" if value is None else value


def quoted(text: str) -> str:
    """Return text that no spreadsheet takes for a formula: one in a file's name is a stranger's.

    :func:`matssl.core.textfiles.unquoted` gives back what it was.
    """
    formula = text.lstrip("'").startswith(FORMULA) and not _is_number(text)
    return f"'{text}" if formula else text


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
