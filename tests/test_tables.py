"""Tables: what a CSV holds, and how shares are written."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from matssl.core import tables, textfiles
from matssl.data import specimens


def test_cells_have_six_digits_and_what_is_unknown_has_none() -> None:
    rows = [{"a": 1 / 3, "b": math.nan, "c": None, "d": 1234567, "e": np.float64(2e-9), "f": "x,y"}]
    assert tables.csv_text(rows) == 'a,b,c,d,e,f\n0.333333,,,1234567,2e-09,"x,y"\n'
    assert tables.csv_text(rows, head=False).startswith("0.333333,")
    assert tables.csv_text([{"a": 1 / 3}], digits=None) == f"a\n{1 / 3!r}\n"
    assert tables.csv_text([]) == "\n" and tables.csv_text([], ["image"]) == "image\n"


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(tables.csv_text([{"image": "größe 1.tif", "share": 0.5}]), encoding="utf-8")
    assert textfiles.read_rows(path) == [{"image": "größe 1.tif", "share": "0.5"}]


def test_text_that_begins_like_a_formula_is_quoted_and_read_back_as_it_was(tmp_path: Path) -> None:
    """D14: a group named =HYPERLINK(...) is a formula in a spreadsheet."""
    names = ["=1+1", "+a", "-steel", "@x", "\ty", "a=b", "-5", "1e3", "'=quoted"]
    path = tmp_path / "a.csv"
    path.write_text(tables.csv_text([{"group": name} for name in names]), encoding="utf-8")
    cells = path.read_text(encoding="utf-8").splitlines()[1:]
    assert [cell.strip('"') for cell in cells] == [
        *("'=1+1", "'+a", "'-steel", "'@x", "'\ty", "a=b", "-5", "1e3", "''=quoted")
    ]
    assert [row["group"] for row in textfiles.read_rows(path)] == [name.strip() for name in names]


def test_a_head_that_begins_like_a_formula_is_quoted_too(tmp_path: Path) -> None:
    """D14: classes and phases head columns, and users name them."""
    path = tmp_path / "a.csv"
    path.write_text(tables.csv_text([{"image": "a", "=1+1": 0.5, "%RA": 1.0}]), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("image,'=1+1,%RA\n")
    assert textfiles.read_rows(path) == [{"image": "a", "=1+1": "0.5", "%RA": "1"}]


def test_rows_are_filled_to_the_longest() -> None:
    rows = tables.filled([{"a": 1}, {"a": 2, "b": 3}])
    assert rows == [{"a": 1, "b": None}, {"a": 2, "b": 3}] and tables.filled([]) == []


@pytest.mark.parametrize(
    ("given", "text"),
    [((0.12345,), "12.3"), ((0.12345, 0.00456, 2), "12.35 ± 0.46"), ((0.5, math.nan, 2), "50.00")],
)
def test_a_share_is_written_in_per_cent_with_its_half_width(
    given: tuple[float, ...], text: str
) -> None:
    share, *more = given
    half_width = more[0] if more else math.nan
    assert tables.percent(share, half_width, int(more[1]) if len(more) > 1 else 1) == text


def test_a_table_of_specimens_is_quoted_once_and_read_back_as_it_was(tmp_path: Path) -> None:
    """D14: the table that a user edits has the same apostrophes as all others."""
    names = [("=a.png", "-steel"), ("+b.png", "@x"), ("'=q.png", "'-q"), ("'plain.png", "x")]
    rows = [specimens.Row(image, specimen) for image, specimen in names]
    specimens.write_table(tmp_path / "specimens.csv", rows)
    assert "''=a" not in (tmp_path / "specimens.csv").read_text(encoding="utf-8")
    found = specimens.read_table(tmp_path / "specimens.csv").rows
    assert [(row.image, row.specimen) for row in found] == names
