"""Tables, pictures and the page of a choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import run_folder
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder
from matssl.core.tables import csv_text, percent
from matssl.core.wording import counted
from matssl.data.annotations import Marked
from matssl.pictures import selection as pictures
from matssl.selection import SCORES
from matssl.selection.candidates import Candidates
from matssl.selection.choosing import Choice
from matssl.stages import drawing
from matssl.stages.select import export
from matssl.stages.select.measured import Eye, Seen, Unit
from matssl.stages.select.pool import Kept, Pool
from matssl.stages.select.settings import SelectSettings

RANKED, KEPT, SHEET = "ranked.csv", "kept_out.csv", "chosen.png"
# Panels on the page, and pictures on the sheet.
SHOWN_PANELS, ON_SHEET = 8, 40
MEASURES = {
    "entropy": ("entropy (1: all classes equally likely)", 1.0),
    "margin": ("1 - lead of the first class", 1.0),
    "least_confidence": ("1 - probability of the first class", 1.0),
    "bald": ("disagreement of passes, nats", math.nan),
}


@dataclass(frozen=True)
class Made:
    """A choice.

    Attributes:
        method: how it was made.
        number: of the round.
        pool: what there was.
        units: candidates.
        candidates: the same as arrays.
        choice: their order.
        kept: pictures that were not to be chosen.
        names: of the classes; none without a model that segments.
        export: format of annotations that the masks are written in, too; "" for none.
    """

    method: str
    number: int
    pool: Pool
    units: Sequence[Unit]
    candidates: Candidates
    choice: Choice
    kept: tuple[Kept, ...] = ()
    names: tuple[str, ...] = ()
    export: str = ""

    @property
    def pictures(self) -> list[tuple[Path, list[int]]]:
        """Chosen pictures in order of their first region, with the ranks (from 1) of each."""
        found: dict[Path, list[int]] = {}
        for rank, number in enumerate(self.choice.chosen, start=1):
            found.setdefault(self.units[number].path, []).append(rank)
        return list(found.items())

    def unit(self, rank: int) -> Unit:
        """Return the candidate of a rank, from 1."""
        return self.units[self.choice.order[rank - 1]]


@dataclass(frozen=True)
class About:
    """What the page says of the choice beside its numbers.

    Attributes:
        described: the method in words.
        model: where it lies.
        features: what they are; "" where none were computed.
        passes: what made them differ; "" without passes.
        settings: of the command.
        ledger: its path.
    """

    described: str
    model: str
    features: str
    passes: str
    settings: SelectSettings
    ledger: str


@dataclass(frozen=True)
class Drawn:
    """A chosen picture as it was drawn.

    Attributes:
        name: of its files.
        path: of the picture.
        panel: file of the panel, None without a model that segments.
    """

    name: str
    path: Path
    panel: Path | None


def write_tables(folder: RunFolder, made: Made) -> None:
    """Write the ranked list with every score, and what was kept out."""
    rows = [row(made, rank) for rank in range(1, len(made.units) + 1)]
    folder.write_text(RANKED, csv_text(rows))
    kept = [{"image": made.pool.name(item.path), "why": item.why} for item in made.kept]
    folder.write_text(KEPT, csv_text(kept, ("image", "why")))
    chosen = dict.fromkeys(made.pool.name(made.unit(r).path) for r in _ranks(made))
    folder.write_text("chosen.txt", "".join(f"{name}\n" for name in chosen))


def row(made: Made, rank: int) -> dict[str, object]:
    """Return a line of the ranked list."""
    number, unit = made.choice.order[rank - 1], made.unit(rank)
    entry: dict[str, object] = {
        "rank": rank,
        "chosen": "yes" if rank <= made.choice.n else "no",
        "image": made.pool.name(unit.path),
        "specimen": unit.specimen,
    }
    if not all(other.whole for other in made.units):
        box = unit.box
        entry |= {"top_px": box.top, "left_px": box.left}
        entry |= {"height_px": box.height, "width_px": box.width}
    entry["priority"] = float(made.choice.priorities[number])
    entry |= unit.scores
    if unit.shares is not None:
        shares = zip(made.names, unit.shares.tolist(), strict=True)
        entry |= {f"share {name}": share for name, share in shares}
    return entry


def draw(folder: RunFolder, made: Made, eye: Eye) -> list[Drawn]:
    """Write maps and predicted masks of the chosen pictures, and a sheet of them.

    Args:
        folder: of the results.
        made: the choice.
        eye: what looks at them once more.
    """
    chosen = made.pictures
    marked: list[Marked] = []
    paths = [path for path, _ in chosen]
    names = drawing.output_names(paths, made.pool.root)
    looks, found = [], []
    for (path, ranks), name in zip(chosen, names, strict=True):
        micrograph = eye.source.record.read(path)
        shown = drawing.shown(micrograph, eye.source.record)
        units = [(rank, made.unit(rank)) for rank in ranks]
        regions = [
            (u.box.top, u.box.left, u.box.height, u.box.width, str(rank))
            for rank, u in units
            if not u.whole
        ]
        panel = None
        if eye.source.segmenter is not None:
            seen = eye.look(micrograph)
            panel = _draw_panel(folder, made, (name, path, ranks), seen, shown, regions)
            classes = seen.prediction.classes
            kept = np.full_like(classes, IGNORE)
            for _, unit in units:
                kept[unit.box.slices] = classes[unit.box.slices]
            drawing.write_masks(folder, "masks", name, kept, len(made.names))
            marked.append(Marked(made.pool.name(path), kept, path))
        looks.append((shown, f"{ranks[0]}  {path.name}", regions))
        found.append(Drawn(name, path, panel))
    if made.export:
        export.write(folder, made.export, marked, made.names)
    pictures.sheet(looks[:ON_SHEET], folder.path(SHEET))
    return found


def _draw_panel(
    folder: RunFolder,
    made: Made,
    what: tuple[str, Path, Sequence[int]],
    seen: Seen,
    shown: NDArray[np.uint8],
    regions: Sequence[pictures.Region],
) -> Path:
    name, path, ranks = what
    measure = next(
        (word for word in MEASURES if word in made.method.replace("boundary_", "")), "entropy"
    )
    label, top = MEASURES[measure]
    values = seen.maps[measure]
    if math.isnan(top):
        top = math.log(max(2, len(made.names)))
    target = folder.path(f"uncertainty/{name}.png")
    title = f"{', '.join(map(str, ranks))}  {path.name}"
    classes = seen.prediction.classes[: seen.prediction.rows]
    pictures.uncertainty(shown, classes, made.names, values, target, title, label, top, regions)
    return target


def write_report(folder: RunFolder, made: Made, about: About, drawn: Sequence[Drawn]) -> None:
    """Write report.html."""
    root, choice = folder.root, made.choice
    regions = not all(unit.whole for unit in made.units)
    what = "regions" if regions else "pictures"
    figures = [
        (str(choice.n), f"{what} to label next"),
        (str(len(made.units)), f"candidates, of {len(made.pool.specimens)} pictures"),
        (str(made.candidates.labelled), "labelled already"),
        (str(len(made.kept)), "pictures kept out"),
    ]
    note = f"Chosen by {made.method}: {about.described}."
    if about.passes:
        note += f" Passes differ by {about.passes}."
    if about.features:
        note += f" Features: {about.features}."
    if made.method == "clasp":
        note += f" Power of the noise: {made.candidates.beta:g}."
    if made.method == "clasp" and made.candidates.labelled_pixels is None:
        note += " The model does not say how many pixels of each class it learned from: the class"
        note += " with the smallest predicted share came first."
    where = f"{RANKED} has all candidates with every score, {KEPT} what was left out and why."
    if made.names:
        where += " masks/index holds the predictions to correct, uncertainty/ the maps."
        if made.export:
            where += f" {export.PLACE}/ holds them as {made.export}."
        if regions:
            where += " Outside the chosen regions masks hold 255, which is not labelled."
    rows = [_shown_row(made, rank) for rank in _ranks(made)]
    panels = "".join(
        report.picture(item.panel) for item in drawn[:SHOWN_PANELS] if item.panel is not None
    )
    sections = [
        ("", report.headline(figures) + report.note(note) + report.note(where)),
        ("To label next", report.table(rows)),
        ("All of them", report.picture(root / SHEET)),
    ]
    if panels:
        some = f"{min(SHOWN_PANELS, len(drawn))} of {counted(len(drawn), 'picture')}."
        top = "Bright is unsure. An image counts by its tenth of most uncertain pixels."
        sections.append(("What the model is unsure of", report.note(f"{some} {top}") + panels))
    if made.kept:
        kept = [{"image": made.pool.name(k.path), "why": k.why} for k in made.kept]
        sections.append(("Kept out", report.table(kept[:200])))
    sections += [
        ("Model", report.text(about.model)),
        ("Ledger", report.text(about.ledger)),
        ("Data", report.text("\n".join([made.pool.facts, *made.pool.notes]))),
        ("Command", report.text(run_folder.read_text(root / "command.txt"))),
    ]
    title = f"What to label next in {made.pool.root.name}"
    subtitle = f"round {made.number}, method {made.method}, seed {about.settings.seed}"
    report.write(root / "report.html", title, subtitle, sections)


def print_choice(folder: RunFolder, made: Made, wanted: int) -> None:
    """Print what was chosen and where it lies, and that there is no more where more was wanted."""
    for rank in _ranks(made):
        unit = made.unit(rank)
        box = unit.box
        place = f" rows {box.top} to {box.top + box.height}, columns {box.left} to "
        place = "" if unit.whole else f"{place}{box.left + box.width}"
        told = "".join(
            f", {name} {unit.scores[name]:.3f}"
            for name in ("entropy", "bald")
            if name in unit.scores
        )
        print(f"  {rank:3d}  {made.pool.name(unit.path)}{place}{told}")
    pixels = sum(made.unit(rank).box.pixels for rank in _ranks(made))
    print(f"  {pixels / 1e6:.2f} million pixels of {counted(len(made.pictures), 'picture')}")
    if made.choice.n < wanted:
        print(f"  note: {made.choice.n} of the {wanted} that were asked for; no more are left")
    print(f"report: {folder.root / 'report.html'}", flush=True)


def _ranks(made: Made) -> range:
    return range(1, made.choice.n + 1)


def _shown_row(made: Made, rank: int) -> dict[str, object]:
    """Return a line of the page's table: the scores of the method, and shares in per cent."""
    unit = made.unit(rank)
    own = made.method.split("+") if "+" in made.method or made.method in SCORES else ["entropy"]
    hidden = {"chosen", "priority", *(name for name in unit.scores if name not in own)}
    entry = {
        key: value
        for key, value in row(made, rank).items()
        if key not in hidden and not key.startswith("share ")
    }
    if unit.shares is not None:
        for name, share in zip(made.names, unit.shares.tolist(), strict=True):
            entry[f"{name} %"] = percent(share)
    return entry
