"""New names for the phases of a run: all that tells them is written anew, the maps stay."""

from __future__ import annotations

import csv
import io
import math
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from matssl.core import run_folder, textfiles
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.core.wording import counted, cut
from matssl.data import readers
from matssl.measure.field import Field, areas
from matssl.stages import drawing
from matssl.stages.phase_map import record
from matssl.stages.phase_map.record import Phases
from matssl.stages.phase_map.report import (
    FRACTIONS,
    SUMMARY,
    draw_panel,
    write_report,
    write_tables,
)
from matssl.stages.phase_map.settings import RenameSettings, new_names

# In the run: files that are being written, and complete ones that take the place of the old.
STAGED, READY = ".renaming", ".renamed"
# Page of a run whose phases.json does not tell all that stood on it.
EARLIER = "report_before.html"
# A share in a table, of six digits, and that of the map it tells of.
DIGITS = 1e-5
TOOL = "python -m matssl.tools.phase_map"


def rename(settings: RenameSettings, argv: Sequence[str] = ()) -> Path:
    """Give the phases of a run new names and return its folder.

    All files are made beside the old ones first and take their places at the end: where anything
    fails, the run is as it was.

    Args:
        settings: resolved flags.
        argv: what the user typed, for command.txt.

    Raises:
        UserError: no phase map, one that is not finished or being written, names that do not fit.
    """
    root = Path(settings.run)
    _check(root)
    # Locked from here on.
    RunFolder.at(root, resume=True, marks=(record.FILE,))
    _put(root)
    before = record.read(root)
    names = new_names(settings.names, before.names)
    changed = names != before.names
    renamed = (*before.renamed, before.names) if changed else before.renamed
    after = replace(before, names=names, renamed=renamed)
    fields = _fields(root, before)
    staged = root / STAGED
    try:
        # Of the same name, which stands on the page.
        folder = RunFolder(staged / root.resolve().name, resumed=False)
        notes = _write(folder, root, after, fields, argv)
        _check_writable(folder.root, root)
        staged.rename(root / READY)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _put(root)
    for old, new in zip(before.names, names, strict=True):
        print(f"  {old} -> {new}" if old != new else f"  {old}")
    for note in notes:
        print(f"note    {note}")
    print(f"report: {root / 'report.html'}", flush=True)
    return root


def _check(root: Path) -> None:
    """Refuse what is no finished phase map.

    Raises:
        UserError: it is none.
    """
    maps = root / "maps" / "index"
    if not maps.is_dir():
        raise UserError(f"{root} is no phase map: {maps} is not there; give the results of {TOOL}")
    state = root / "status.json"
    try:
        done = state.is_file() and textfiles.read_json(state)["state"] == "done"
    except (KeyError, TypeError) as error:
        raise UserError(f"{state} is damaged; run {TOOL} again") from error
    if not done or not (root / record.FILE).is_file():
        raise UserError(
            f"{root} was broken off before its end or is still running; let {TOOL} end, or run it "
            "again with --overwrite"
        )


def _check_writable(staged: Path, root: Path) -> None:
    """Refuse a run in which not every file can be replaced, before the first is."""
    for folder in sorted({path.parent for path in staged.rglob("*") if path.is_file()}):
        place = root / folder.relative_to(staged)
        place.mkdir(exist_ok=True)
        if not os.access(place, os.W_OK):
            raise UserError(f"cannot write to {place}; nothing was renamed")


def _put(root: Path) -> None:
    """Put complete files into their places, those of an earlier call that was killed too."""
    shutil.rmtree(root / STAGED, ignore_errors=True)
    for folder in (root / READY).glob("*"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = root / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            path.replace(target)
    if (root / READY).exists():
        shutil.rmtree(root / READY)


def _fields(root: Path, phases: Phases) -> list[Field]:
    """Return the fields of a run with the areas of its maps.

    Raises:
        UserError: a map or the table is missing, damaged, or tells other fractions.
    """
    table = root / FRACTIONS
    fields = []
    try:
        reader = csv.DictReader(io.StringIO(textfiles.read_text(table), newline=""))
        plain = textfiles.unquoted
        rows = [{plain(k): plain(cell) for k, cell in row.items()} for row in reader]
        paths = [Path(row["image"]) for row in rows]
        files = phases.made.maps if phases.made else _maps_of_before(root, paths)
        if not rows:
            raise ValueError("no rows")
        for row, path, name in zip(rows, paths, files, strict=True):
            own = areas(_map(root, name), len(phases.names))
            size = float(row["pixel_size_nm"]) if row["pixel_size_nm"] else None
            place = row.get("sequence") or ""
            frame = int(row["frame"]) if place else None
            field = Field(path, name, row["group"], own, size, place, frame)
            told = [float(row[phase] or "nan") for phase in phases.names]
            for phase, share, found in zip(phases.names, told, field.fractions, strict=True):
                same = math.isclose(share, found, rel_tol=DIGITS)
                if not (same or math.isnan(share) and math.isnan(found)):
                    raise UserError(
                        f"{root / 'maps' / 'index' / name}.png is not the map that {FRACTIONS} "
                        f"tells of: {100 * found:.4g} % of it are {cut(phase, 60)}, not "
                        f"{100 * share:.4g} %; put the map back that {TOOL} made, or run it again"
                    )
            fields.append(field)
    except (AttributeError, KeyError, TypeError, ValueError, csv.Error) as error:
        told_of = f"{type(error).__name__}: {cut(str(error), 80)}"
        raise UserError(f"{table} is damaged ({told_of}); run {TOOL} again") from error
    return fields


def _maps_of_before(root: Path, paths: Sequence[Path]) -> list[str]:
    """Return the names of the maps of a run whose phases.json does not tell them."""
    data = textfiles.read_yaml(root / "config.yaml")["data"]
    return drawing.output_names(paths, Path(data))


def _map(root: Path, name: str) -> NDArray[np.uint8]:
    """Return a map, uint8 (H, W)."""
    path = root / "maps" / "index" / f"{name}.png"
    if not path.is_file():
        raise UserError(f"{path} is missing: the fractions cannot be told; run {TOOL} again")
    return np.asarray(readers.read_mask(path)).astype(np.uint8, copy=False)


def _write(
    folder: RunFolder, root: Path, phases: Phases, fields: Sequence[Field], argv: Sequence[str]
) -> list[str]:
    """Write all that tells the names; return what is to be said of it.

    Args:
        folder: for what is written.
        root: of the run.
        phases: with their new names.
        fields: of all images.
        argv: what the user typed.
    """
    command = run_folder.read_text(root / "command.txt")
    line = shlex.join(["python", "-m", "matssl.tools.rename_phases", *argv])
    folder.write_text("command.txt", f"{command.rstrip()}\n{line}\n".lstrip())
    notes = []
    kept = _draw(folder, root, phases, fields)
    if kept:
        first, why = next(iter(kept.items()))
        notes.append(
            f"{counted(len(kept), 'panel')} of {len(fields)} keep the names they had "
            f"(first: {first}: {why})"
        )
    summary = write_tables(folder, fields, phases)
    if _numbers(root / SUMMARY) != _numbers(folder.root / SUMMARY):
        notes.append(
            f"{SUMMARY} was written by another version of matssl: its means and intervals are now "
            "by the rules of this one"
        )
    if phases.made is None:
        notes.append(
            "the version of matssl that made this run did not keep what its phases were found "
            "with, where the model comes from and doubts about its pretraining; the page of before "
            f"is kept as {EARLIER}"
        )
        if not (root / EARLIER).exists() and (root / "report.html").is_file():
            shutil.copyfile(root / "report.html", folder.path(EARLIER))
    said = [f"{note[0].upper()}{note[1:]}." for note in notes]
    if phases.renamed:
        said = [f"The map was made with the names {', '.join(phases.renamed[0])}.", *said]
    facts = run_folder.read_text(root / "preflight.txt").removesuffix("\n")
    write_report(folder, fields, phases, summary, facts, said, before=root)
    return notes


def _draw(folder: RunFolder, root: Path, phases: Phases, fields: Sequence[Field]) -> dict[str, str]:
    """Draw the panels; return by the name of an image why one could not be drawn."""
    kept = {}
    for field in tqdm(fields, desc="panels", disable=None):
        why = _panel(folder, root, phases, field)
        if why:
            kept[field.image.name] = why
    return kept


def _panel(folder: RunFolder, root: Path, phases: Phases, field: Field) -> str:
    """Draw the panel of a field; return why it could not be, "" where it was."""
    if phases.made is None:
        return "how images were read was not kept"
    if not readers.file_of(field.image).is_file():
        return f"there is no {cut(str(field.image))}"
    full = _map(root, field.name)
    # Below the last row of a phase lies the information bar.
    inside = np.flatnonzero((full != IGNORE).any(axis=1))
    rows = int(inside[-1]) + 1 if len(inside) else 0
    reading = replace(phases.made.images, crop_bottom=len(full) - rows)
    try:
        micrograph = reading.frame(field.image)
        if micrograph.pixels.shape[:2] != full.shape:
            return "the micrograph has another size than its map"
        shown = drawing.shown(micrograph, reading)
    except UserError as error:
        return cut(str(error))
    micrograph = replace(micrograph, pixel_size=field.pixel_size)
    path = folder.path(f"panels/{field.name}.png")
    draw_panel(path, shown, full[:rows], phases.names, micrograph)
    return ""


def _numbers(path: Path) -> list[dict[str, str]]:
    """Return a table of phases without their names."""
    if not path.is_file():
        return []
    return [
        {name: cell for name, cell in row.items() if name != "phase"}
        for row in textfiles.read_rows(path)
    ]
