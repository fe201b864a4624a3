"""Words about a measurement: on the screen, and as a page that a colleague understands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matssl import report
from matssl.core import run_folder
from matssl.core.run_folder import RunFolder
from matssl.core.tables import filled
from matssl.core.wording import counted, cut
from matssl.stages.measure.inputs import Source
from matssl.stages.measure.kind import Kind, Measured

# Rows of a table on the screen; all are in its CSV file.
SHOWN = 12
# Letters of a cell there.
WIDEST = 40
TITLES = {
    "fractions": "Phase fractions",
    "objects": "Objects",
    "grains": "Grain size",
    "layers": "Layers and cracks",
    "point_count": "Point count (ASTM E562)",
}


def facts(source: Source, asked: Sequence[Kind], compared: bool = False) -> str:
    """Return what is measured on what, in words.

    Args:
        source: of the masks.
        asked: what is measured.
        compared: whether ``--compare`` asks for differences, which not all measurements give.
    """
    lines = [
        f"input   {source.root}: {source.what}, {counted(source.count, 'field')}",
        f"classes {', '.join(source.names)}",
        f"measure {', '.join(kind.name.replace('_', ' ') for kind in asked)}",
        f"groups  {source.grouping.text}",
    ]
    alone = [TITLES.get(kind.name, kind.name).lower() for kind in asked if not kind.compares]
    notes = [*source.notes]
    if compared and alone:
        notes.append(
            f"--compare gives differences of phase fractions and of grain size, not of "
            f"{' and '.join(alone)}"
        )
    return "\n".join([*lines, *(f"note    {note}" for note in notes)])


def write(
    folder: RunFolder,
    found: Mapping[str, Measured],
    drawn: Mapping[str, list[tuple[Path, str]]],
    said: str,
) -> None:
    """Write report.html.

    Args:
        folder: of the results.
        found: by measurement.
        drawn: pictures of each with their captions.
        said: of the input, in words.
    """
    sections: list[tuple[str, str]] = []
    figures = [figure for one in found.values() for figure in one.headline]
    if figures:
        sections.append(("", report.headline(figures)))
    for name, one in found.items():
        body = report.note(one.rule) + report.table(filled(one.page))
        body += "".join(report.note(note) for note in one.notes)
        body += "".join(report.picture(path, caption) for path, caption in drawn[name])
        sections.append((TITLES.get(name, name), body))
    sections.append(("Data", report.text(said)))
    command = report.text(run_folder.read_text(folder.root / "command.txt"))
    sections.append(("Command", command))
    subtitle = ", ".join(TITLES.get(name, name).lower() for name in found)
    report.write(folder.root / "report.html", folder.root.name, subtitle, sections)


def show(root: Path, found: Mapping[str, Measured]) -> None:
    """Print the short tables, and where all lies."""
    for name, one in found.items():
        print(f"\n{TITLES.get(name, name)}")
        rows = filled(one.page)
        for line in _lines(rows[:SHOWN]):
            print(line)
        if len(rows) > SHOWN:
            print(f"... {len(rows) - SHOWN} more in {root / 'specimens.csv'}")
        for note in one.notes:
            print(f"note    {note}")
    print(f"\ntables  {root}/*.csv, measure.xlsx, measure.json")
    print(f"report  {root / 'report.html'}")


def _lines(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a table in columns, words left and numbers right."""
    if not rows:
        return []
    cells = [[str(name) for name in rows[0]]]
    # Names of files may be long, or hold a line break.
    cells += [[cut(" ".join(report.shown(v).split()), WIDEST) for v in r.values()] for r in rows]
    words = [any(isinstance(row[name], str) for row in rows) for name in rows[0]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(words))]
    return [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in cells
    ]
