"""Tables, pictures and the page of a phase map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import run_folder
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.data.readers import Micrograph
from matssl.measure import fractions, tables
from matssl.measure.field import Field
from matssl.measure.fractions import Estimate
from matssl.pictures import segmentation as pictures
from matssl.stages.held_out import UNLABELLED
from matssl.stages.phase_map.record import FILE, Phases

SHOWN_PANELS = 6
# Longest side of an image in a panel.
PANEL_SIDE = 1200
FRACTIONS, SUMMARY = "phase_fractions.csv", "phase_summary.csv"
UNKNOWN = "not kept by the version of matssl that made this run"


def draw_panel(
    path: Path,
    shown: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    names: Sequence[str],
    micrograph: Micrograph,
) -> None:
    """Draw micrograph, map and overlay; large images are shrunk to what a page can show."""
    pixel_size = micrograph.pixel_size
    factor = max(labels.shape) / PANEL_SIDE
    if factor > 1:
        size = (max(1, round(labels.shape[1] / factor)), max(1, round(labels.shape[0] / factor)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
        pixel_size = None if pixel_size is None else pixel_size * factor
    title = Path(micrograph.source).name
    pictures.panel(shown, None, labels, names, path, title, pixel_size, predicted="phase map")


def write_tables(folder: RunFolder, fields: Sequence[Field], phases: Phases) -> dict[str, Estimate]:
    """Write the tables and return the fraction of each phase over the specimens.

    Args:
        folder: of the results, without any of these tables.
        fields: of all images.
        phases: with their names.
    """
    names, origin = phases.names, phases.origin
    placed = any(field.sequence for field in fields)
    for field in fields:
        row: dict[str, object] = {"image": str(field.image), "group": field.specimen}
        row |= {"sequence": field.sequence, "frame": field.frame} if placed else {}
        row |= tables.fraction_cells(field, names)
        folder.append_csv(FRACTIONS, row | {"pixel_size_nm": field.pixel_size})
    summary = dict(zip(names, fractions.over_specimens(fields), strict=True))
    for name, entry in summary.items():
        folder.append_csv(SUMMARY, {"phase": name, **entry.stored()})
    colours = pictures.colour_names(names)
    entries = {
        name: {"index": i, "colour": colours[name], "prototypes": origin[i]}
        | summary[name].stored()
        for i, name in enumerate(names)
    }
    folder.write_json(FILE, {"outside": IGNORE, "phases": entries} | phases.further())
    bars = np.array([field.fractions for field in fields])
    files = [field.name for field in fields]
    pictures.fraction_bars(bars, files, names, folder.path("fractions.png"))
    return summary


def write_report(
    folder: RunFolder,
    fields: Sequence[Field],
    phases: Phases,
    summary: dict[str, Estimate],
    facts: str,
    notes: Sequence[str] = (),
    before: Path | None = None,
) -> None:
    """Write report.html.

    Args:
        folder: of the results; pictures and tables lie in it.
        fields: of all images.
        phases: what is known of them.
        summary: fraction of each phase by name.
        facts: of the images, in words.
        notes: what else is to be said at the top.
        before: run whose panels are shown where the folder has none.
    """
    root, names, made = folder.root, phases.names, phases.made
    figures = [(str(len(names)), "phases"), (str(len(fields)), "micrographs")]
    figures.append((str(len({field.specimen for field in fields})), "specimens or fields"))
    note = report.note(
        f"Found without labels: {phases.described}. A phase here is what looks alike to "
        "the network; whether it is one in the sense of the material is for the reader to say, who "
        "gives it a name with matssl.tools.rename_phases and joins what belongs together with "
        "--phases."
    )
    if made and made.doubt:
        note += report.note(f"Warning: {made.doubt}.")
    note += "".join(map(report.note, notes))
    about = report.note(f"{tables.FRACTION_NOTE} From and to are single images.")
    about += report.note(UNLABELLED)
    rows = _summary_rows(fields, phases, summary)
    table = report.table(rows, swatches=pictures.colour_names(names)) + about
    shown = [fields[i] for i in _chosen(len(fields))]
    panels = "".join(_panel(f"panels/{field.name}.png", root, before) for field in shown)
    which = f"{len(shown)} of {len(fields)} images; all lie in panels/." if panels else ""
    every = [
        {"image": field.image.name, "group": field.specimen} | tables.percent_cells(field, names)
        for field in fields
    ]
    bars = report.picture(root / "fractions.png", width=430)
    sections = [
        ("", report.headline(figures) + note),
        ("Phase fractions", report.beside(table, bars)),
        ("Maps", report.note(which) + panels),
        ("All images", report.table(every)),
        ("Where the model comes from", report.text(made.lineage if made else UNKNOWN)),
        ("Data", report.text(facts)),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
    ]
    title = f"Phases of {root.name}" if len(names) > 6 else f"Phase map: {', '.join(names)}"
    subtitle = f"{len(fields)} micrographs, no labels used"
    report.write(root / "report.html", title, subtitle, sections)


def _panel(name: str, root: Path, before: Path | None) -> str:
    own = root / name
    return report.picture(own if before is None or own.is_file() else before / name)


def _summary_rows(
    fields: Sequence[Field], phases: Phases, summary: dict[str, Estimate]
) -> list[dict[str, object]]:
    """Return one row a phase: its fraction, its range, of how many prototypes it is joined."""
    rows = []
    for number, (name, entry) in enumerate(summary.items()):
        row: dict[str, object] = {"phase": name, "area %": tables.fraction_text(entry.fraction)}
        values = [field.fractions[number] for field in fields]
        row["from %"], row["to %"] = f"{100 * min(values):.1f}", f"{100 * max(values):.1f}"
        if phases.joined:
            row["prototypes"] = len(phases.origin[number])
        rows.append(row)
    return rows


def _chosen(count: int) -> list[int]:
    """Return the numbers of the images whose panels the report shows, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(SHOWN_PANELS, count)).astype(int)).tolist()
