"""How surely information bars and scale bars are found, and how often one is seen where none is.

``python -m benchmarks.bars --out OUT [--data DATA]`` looks at drawn pictures with bars, at some
without, and at all micrographs below DATA (it lists those in which it finds a bar, so that
one can look at them). Goes on where it stopped; prints the table of what is done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import drawn_bars
from benchmarks.drawn_bars import Drawn
from matssl.core.errors import UserError
from matssl.data import layouts, readers
from matssl.data.readers import scale_bar

# Parts of paths below DATA that hold masks.
MASKS = ("annot", "label", "target")


def main() -> None:
    """Look at what was not looked at, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--number", type=int, default=300)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "bars.jsonl"
    done = {}
    if file.is_file():
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        done = {(row["kind"], row["name"]): row for row in rows}
    with file.open("a", encoding="utf-8") as log:
        for number in range(args.number):
            for kind, draw in (("bar", drawn_bars.with_bar), ("none", drawn_bars.without_bar)):
                if (kind, str(number)) not in done:
                    row = {"kind": kind, "name": str(number), **measured(draw(number))}
                    done[kind, str(number)] = row
                    log.write(json.dumps(row) + "\n")
                    log.flush()
        # Of the first so many those of 8 bits that are no JPEG, which has noise of its own.
        for number in range(args.number // 3):
            for kind, draw in (("bar", drawn_bars.with_bar), ("none", drawn_bars.without_bar)):
                if (f"noisy {kind}", str(number)) in done:
                    continue
                drawn = draw(number)
                if drawn.pixels.dtype == np.uint8 and "JPEG" not in drawn.what:
                    found = measured(drawn_bars.noisy(drawn, number))
                    row = {"kind": f"noisy {kind}", "name": str(number), **found}
                    done[row["kind"], str(number)] = row
                    log.write(json.dumps(row) + "\n")
                    log.flush()
        for row in _real(args.data, done):
            done["real", row["name"]] = row
            log.write(json.dumps(row) + "\n")
    print(table(list(done.values())))


def measured(drawn: Drawn) -> dict[str, Any]:
    """Return what is found in a drawn picture beside what was drawn."""
    found = readers.bar_height(drawn.pixels)
    scale = scale_bar.find(drawn.pixels) if drawn.scale_bar else None
    return {
        "what": drawn.what,
        "rows": drawn.rows,
        "found": found,
        "scale": drawn.scale_bar,
        "scale_found": None if scale is None else scale.pixels,
    }


def _real(data: Path | None, done: dict[tuple[str, str], Any]) -> Iterator[dict[str, Any]]:
    if data is None:
        return
    for path in layouts.unlabelled(data)[0]:
        name = path.relative_to(data).as_posix()
        if any(word in name.lower() for word in MASKS) or ("real", name) in done:
            continue
        try:
            found = readers.bar_height(readers.read(path).pixels)
        except UserError:
            continue
        yield {"kind": "real", "name": name, "what": name, "rows": None, "found": found}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the result as a table in Markdown."""
    lines = ["| pictures | n | right | wrong |", "| --- | --- | --- | --- |"]
    bars = [row for row in rows if row["kind"] == "bar"]
    for style in drawn_bars.STYLES:
        these = [row for row in bars if row["what"].startswith(style)]
        lines.append(_line(f"bar, {style}", these))
    lines.append(_line("**all bars, to 1 row**", bars))
    none = [row for row in rows if row["kind"] == "none"]
    lines.append(_line("**without a bar, drawn**", none))
    for kind, what in (("bar", "bars"), ("none", "without a bar")):
        these = [row for row in rows if row["kind"] == f"noisy {kind}"]
        lines.append(_line(f"{what}, each pixel off by up to 2 levels", these))
    real = [row for row in rows if row["kind"] == "real"]
    fired = [f"{row['name']} ({row['found']} rows)" for row in real if row["found"]]
    told = "; ".join(fired) or "none"
    lines.append(f"| real micrographs | {len(real)} | | a bar is found in: {told} |")
    scales = [row for row in bars if row["scale"]]
    good = [row for row in scales if row["scale_found"] and _near(row)]
    wrong = ", ".join(row["name"] for row in scales if row not in good)
    lines.append(f"| scale bars, to 1.5 pixels | {len(scales)} | {len(good)} | {wrong or 'none'} |")
    return "\n".join(lines)


def _near(row: dict[str, Any]) -> bool:
    return bool(abs(row["scale_found"] - row["scale"]) <= 1.5)


def _line(what: str, rows: list[dict[str, Any]]) -> str:
    wrong = [row for row in rows if abs(row["found"] - row["rows"]) > 1]
    told = ", ".join(f"{r['name']}: {r['found']} for {r['rows']} ({r['what']})" for r in wrong)
    return f"| {what} | {len(rows)} | {len(rows) - len(wrong)} | {told or 'none'} |"


if __name__ == "__main__":
    main()
