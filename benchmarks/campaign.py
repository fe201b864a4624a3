"""Tables that grow by a row a run, so that a campaign goes on where it stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table, none where there is no table yet."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a table; the header comes with the first one. The row is shown, too."""
    with open(path, "a", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        if file.tell() == 0:
            table.writeheader()
        table.writerow(row)
    print(*row.values(), flush=True)
