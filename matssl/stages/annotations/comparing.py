"""How far two annotators of the same pictures agree: ``annotations compare``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from matssl import report
from matssl.core import flags
from matssl.core.errors import UserError
from matssl.core.labels import IGNORE
from matssl.core.run_folder import RunFolder, atomic_write_bytes
from matssl.core.tables import csv_text
from matssl.core.wording import counted, cut
from matssl.data import layouts, readers
from matssl.data.annotations.drawing import stem_of
from matssl.data.preprocess import Preprocess
from matssl.measure import intervals, score_intervals
from matssl.measure.intervals import MIN_FIELDS, Interval
from matssl.metrics import boundary, overlap
from matssl.metrics.agreement import kappa
from matssl.metrics.counts import confusion
from matssl.pictures import agreement as pictures
from matssl.pictures.segmentation import colour_names
from matssl.stages import predictions
from matssl.stages.annotations import masks
from matssl.stages.annotations.export_settings import CompareSettings
from matssl.stages.annotations.masks import Masks, OneMask
from matssl.stages.drawing import fitting, shown
from matssl.stages.settings import EXPERIMENTS

SHOWN = 4
CEILING = (
    "A model that learned from one of the two is not expected to agree with the other any better."
)
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """What was counted of one picture.

    Attributes:
        picture: its path below its folder.
        counts: pixels by class of the first (rows) and of the second (columns), int64 (C, C).
        borders: see :func:`matssl.metrics.boundary.border_hits`, int64 (C, 4).
        ignored: pixels that one of the two ignores.
    """

    picture: str
    counts: Counts
    borders: Counts
    ignored: int


@dataclass
class Agreement:
    """All that is said of two annotators."""

    names: tuple[str, ...]
    compared: list[Compared] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(args: CompareSettings, argv: Sequence[str]) -> None:
    """Compare the masks and write tables, pictures and a page.

    Raises:
        UserError: no picture that both annotated, masks of different sizes, names of classes that
            do not fit.
    """
    first, second = Path(args.a), Path(args.b)
    root = Path(EXPERIMENTS) / "compare" / f"{first.resolve().name}_{second.resolve().name}"
    root = root if args.output_dir is None else Path(args.output_dir)
    RunFolder.check(root, False, args.overwrite, resumable=False)
    one, other = masks.together(
        masks.find(first, args.images or _pictures_of(second, first), _classes(args, first)),
        masks.find(second, args.images or _pictures_of(first, second), _classes(args, second)),
        args.classes,
    )
    pairs, notes = _paired(one, other)
    names, told = _names(one, other)
    found = Agreement(names, notes=[*notes, *told])
    numbers = [np.array([names.index(n) for n in side.names], np.uint8) for side in (one, other)]

    def opened(mine: OneMask, its: OneMask) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        a, b = _numbered(one.open(mine), numbers[0]), _numbered(other.open(its), numbers[1])
        if a.shape != b.shape:
            raise UserError(
                f"{mine.file} has {a.shape[1]} x {a.shape[0]} pixels, {its.file} {b.shape[1]} x "
                f"{b.shape[0]}; both must be of one picture"
            )
        return a, b

    # Everything is read once before anything is written.
    for mine, its in pairs:
        a, b = opened(mine, its)
        found.compared.append(_counted(mine.picture, a, b, len(names)))
    if not sum(int(c.counts.sum()) for c in found.compared):
        raise UserError(f"no pixel is labelled both in {first} and in {second}")
    folder = RunFolder.at(root, False, args.overwrite)
    folder.start(flags.to_dict(args), argv)
    for mine, its in pairs:
        a, b = opened(mine, its)
        drawn = pictures.disagreement(a, b, _grey(mine.image or its.image, a.shape))
        data = cv2.imencode(".png", np.ascontiguousarray(drawn[..., ::-1]))[1].tobytes()
        atomic_write_bytes(folder.path(f"pictures/{_called(mine.picture)}.png"), data)
    rows, head = _of_classes(found), _of_all(found)
    folder.write_text("agreement.csv", csv_text(rows))
    folder.write_text("summary.csv", csv_text(head))
    folder.write_text("per_picture.csv", csv_text(_of_pictures(found)))
    folder.write_text("confusion.csv", csv_text(_confusion(found)))
    _page(folder, found, one, other, rows, head)
    folder.status("done", pictures=len(pairs))
    for line in _lines(found, one, other, rows, head, root):
        print(line)


def _classes(args: CompareSettings, folder: Path) -> str | None:
    """Return ``--classes`` for masks that are no run's; a run names its classes itself."""
    return args.classes if predictions.folder(folder) is None else None


def _pictures_of(folder: Path, bare: Path) -> str | None:
    """Return the folder that has the pictures of another one's annotations, None where none has.

    Args:
        folder: a labelled folder, where it has them.
        bare: the other one; annotations without pictures need them.
    """
    if not (folder.is_dir() and bare.is_dir()):
        return None
    if readers.listing(bare).images or predictions.folder(bare) is not None:
        return None
    if predictions.folder(folder) is not None or not readers.listing(folder).images:
        return None
    # A folder of masks has images, and none of them is a picture that was annotated.
    pictures = layouts.find(folder, need_masks=False, whole=True).table is not None
    return str(folder) if pictures else None


def _called(picture: str) -> str:
    return fitting(stem_of(picture).replace("/", "_"))


def _paired(one: Masks, other: Masks) -> tuple[list[tuple[OneMask, OneMask]], list[str]]:
    """Return the masks of one picture side by side, and what only one of them has.

    Raises:
        UserError: they share no picture.
    """

    def keys(side: Masks) -> list[dict[str, list[OneMask]]]:
        whole: dict[str, list[OneMask]] = {}
        last: dict[str, list[OneMask]] = {}
        for item in side.masks:
            name = stem_of(item.picture).casefold()
            whole.setdefault(name, []).append(item)
            last.setdefault(name.rsplit("/", 1)[-1], []).append(item)
        return [whole, last]

    (_, own_last), (whole, last) = keys(one), keys(other)
    pairs: list[tuple[OneMask, OneMask]] = []
    alone: list[OneMask] = []
    for mine in one.masks:
        name = stem_of(mine.picture).casefold()
        short = name.rsplit("/", 1)[-1]
        # Folders may differ where the name alone is one picture's on both sides.
        clear = len(own_last[short]) == 1 and len(last.get(short, ())) == 1
        fitting_ = whole.get(name) or (last[short] if clear else [])
        if len(fitting_) == 1:
            pairs.append((mine, fitting_[0]))
        else:
            alone.append(mine)
    if not pairs:
        raise UserError(
            f"{one.root} and {other.root} share no picture by name (first: "
            f"{one.masks[0].picture}; {other.masks[0].picture})"
        )
    taken = {its.file for _, its in pairs}
    rest = [its for its in other.masks if its.file not in taken]
    notes = []
    for side, left in ((one, alone), (other, rest)):
        if left:
            named = ", ".join(item.picture for item in left[:SHOWN])
            notes.append(f"in {side.root} alone: {counted(len(left), 'picture')} ({named})")
    return pairs, notes


def _names(one: Masks, other: Masks) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes of both, and which only one of them has.

    Raises:
        UserError: names that differ by letters' case or blanks alone, or have nothing in common.
    """
    mine = [name for name in one.names if name not in other.names]
    its = [name for name in other.names if name not in one.names]

    def plain(name: str) -> str:
        return "".join(letter for letter in name.casefold() if letter not in " _-")

    alike = [(a, b) for a in mine for b in its if plain(a) == plain(b)]
    if alike:
        a, b = alike[0]
        raise UserError(
            f"{one.root} says {a!r} and {other.root} {b!r}: give both one name, in their "
            "classes.yaml or with --classes"
        )
    if len(mine) == len(one.names):
        raise UserError(
            f"{one.root} and {other.root} have no class in common ({', '.join(one.names)}; "
            f"{', '.join(other.names)}); name them alike, in their classes.yaml or with --classes"
        )
    notes = [
        f"class in {side.root} alone: {', '.join(left)}"
        for side, left in ((one, mine), (other, its))
        if left
    ]
    return (*one.names, *its), notes


def _numbered(mask: NDArray[np.uint8], numbers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a mask with the numbers that both sides share."""
    places = np.full(256, IGNORE, np.uint8)
    places[: len(numbers)] = numbers
    return places[mask]


def _counted(
    picture: str, one: NDArray[np.uint8], other: NDArray[np.uint8], classes: int
) -> Compared:
    # What one of them ignores counts for neither.
    unknown = (one == IGNORE) | (other == IGNORE)
    one, other = np.where(unknown, np.uint8(IGNORE), one), np.where(unknown, np.uint8(0), other)
    borders = boundary.border_hits(one, other, classes)
    counts = confusion(one, other, classes)
    return Compared(picture, counts, borders, int(np.count_nonzero(unknown)))


def _grey(image: Path | None, size: tuple[int, ...]) -> NDArray[np.uint8] | None:
    if image is None:
        return None
    micrograph = readers.read(image)
    grey = shown(micrograph, Preprocess.chosen(channels=1, crop_bottom="none"))
    grey = grey if grey.ndim == 2 else grey.mean(axis=2).astype(np.uint8)
    return grey if grey.shape == size else None


def _left_out(values: Sequence[Counts]) -> list[Counts]:
    """Return the sum of all but each."""
    whole = np.sum(values, axis=0)
    return [whole - one for one in values]


def _jackknifed(
    values: Sequence[Counts], score: Callable[[Counts], float], low: float = 0.0
) -> tuple[float, Interval]:
    """Return a score of all pictures together, and its interval over pictures."""
    value = score(np.sum(values, axis=0))
    return value, intervals.jackknife(value, [score(v) for v in _left_out(values)], low)


def _of_classes(found: Agreement) -> list[dict[str, object]]:
    """Return a row a class: pixels, IoU, Dice and boundary F1, each with its interval."""
    counts = [c.counts for c in found.compared]
    borders = [c.borders for c in found.compared]
    whole = np.sum(counts, axis=0)
    rows = []
    for number, name in enumerate(found.names):
        row: dict[str, object] = {"class": name}
        row |= {"pixels A": int(whole[number].sum()), "pixels B": int(whole[:, number].sum())}
        drawn = [c[number].sum() + c[:, number].sum() > 0 for c in counts]
        row["pictures"] = int(sum(drawn))
        scores = (("IoU", counts, _iou), ("Dice", counts, _dice), ("boundary F1", borders, _f1))
        for score, values, of in scores:
            value, interval = _jackknifed(values, partial(of, number))
            row |= _with_ends(score, value, interval)
        rows.append(row)
    return rows


def _iou(number: int, counts: Counts) -> float:
    return float(overlap.iou(counts)[number])


def _dice(number: int, counts: Counts) -> float:
    return float(overlap.dice(counts)[number])


def _f1(number: int, borders: Counts) -> float:
    return float(boundary.f1(borders[None])[number])


def _with_ends(name: str, value: float, interval: Interval) -> dict[str, object]:
    return {name: value, f"{name} low": interval.low, f"{name} high": interval.high}


def _of_all(found: Agreement) -> list[dict[str, object]]:
    """Return the figures of all classes together, each with its interval over pictures."""
    counts = [c.counts for c in found.compared]
    whole = np.sum(counts, axis=0)
    # Pictures are the sample: each is a specimen of its own here.
    mean = score_intervals.mean_iou(counts, [c.picture for c in found.compared])
    rows: list[dict[str, object]] = [
        {"figure": "mean IoU", "value": overlap.miou(whole), "low": mean.low, "high": mean.high}
    ]
    for name, score, low in (
        ("mean Dice", lambda c: overlap.mean(overlap.dice(c)), 0.0),
        ("Cohen's kappa", kappa, -1.0),
        ("share of equal pixels", overlap.accuracy, 0.0),
    ):
        value, interval = _jackknifed(counts, score, low)
        rows.append({"figure": name, "value": value, "low": interval.low, "high": interval.high})
    return [{**row, "pictures": len(counts)} for row in rows]


def _of_pictures(found: Agreement) -> list[dict[str, object]]:
    rows = []
    for one in found.compared:
        row: dict[str, object] = {"picture": one.picture, "pixels": int(one.counts.sum())}
        row |= {"ignored by one": one.ignored, "different": _different(one.counts)}
        row |= {"mean IoU": overlap.miou(one.counts), "Cohen's kappa": kappa(one.counts)}
        for name, iou in zip(found.names, overlap.iou(one.counts).tolist(), strict=True):
            row[f"IoU {name}"] = iou
        rows.append(row)
    return rows


def _different(counts: Counts) -> int:
    return int(counts.sum() - np.trace(counts))


def _confusion(found: Agreement) -> list[dict[str, object]]:
    whole = np.sum([c.counts for c in found.compared], axis=0)
    return [
        {"A \\ B (px)": name, **dict(zip(found.names, row, strict=True))}
        for name, row in zip(found.names, whole.tolist(), strict=True)
    ]


def _spanned(row: Mapping[str, object], name: str, low: str, high: str) -> str:
    value, ends = row[name], (row[low], row[high])
    if not isinstance(value, float) or value != value:
        return "–"
    if any(not isinstance(end, float) or end != end for end in ends):
        return f"{value:.3f}"
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})"


def _short(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the rows of classes for screen and page."""
    return [
        {
            "class": row["class"],
            "pixels A": row["pixels A"],
            "pixels B": row["pixels B"],
            **{
                score: _spanned(row, score, f"{score} low", f"{score} high")
                for score in ("IoU", "Dice", "boundary F1")
            },
        }
        for row in rows
    ]


def _figures(head: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    return [(str(row["figure"]), _spanned(row, "value", "low", "high")) for row in head]


def _rule(number: int) -> str:
    many = counted(number, "picture")
    if number < MIN_FIELDS:
        return f"all pixels of {many} together; no intervals below {MIN_FIELDS} pictures"
    return (
        f"all pixels of {many} together; in brackets 95 % intervals over pictures (jackknife); "
        "pictures of one specimen are alike, and the intervals then too narrow"
    )


def _page(
    folder: RunFolder,
    found: Agreement,
    one: Masks,
    other: Masks,
    rows: Sequence[Mapping[str, object]],
    head: Sequence[Mapping[str, object]],
) -> None:
    differing = [c for c in found.compared if _different(c.counts)]
    worst = sorted(differing, key=lambda c: -_different(c.counts))[:SHOWN]
    drawn = [
        report.picture(
            folder.path(f"pictures/{_called(c.picture)}.png"),
            f"{c.picture}: {_different(c.counts):,} of {c.counts.sum():,} pixels differ",
            640,
        )
        for c in worst
    ]
    swatches = colour_names(found.names)
    legend = "Magenta: both give another class. Blue: outlines of A. Orange: outlines of B."
    report.write(
        folder.path("report.html"),
        "Agreement of two annotators",
        f"A {one.root}, B {other.root}",
        [
            ("", report.headline([(value, name) for name, value in _figures(head)])),
            ("Classes", report.table(_short(rows), swatches=swatches)),
            ("", report.note(f"Scores are of {_rule(len(found.compared))}. {CEILING}")),
            ("Which class A takes for which of B", report.table(_confusion(found))),
            ("Where they differ most", report.note(legend) + "".join(drawn))
            if drawn
            else ("", report.note("Both give each pixel the same class.")),
            ("Notes", report.text("\n".join(found.notes))) if found.notes else ("", ""),
        ],
    )


def _lines(
    found: Agreement,
    one: Masks,
    other: Masks,
    rows: Sequence[Mapping[str, object]],
    head: Sequence[Mapping[str, object]],
    root: Path,
) -> list[str]:
    """Return the screen."""
    lines = [f"  A            {one.what}: {one.root}", f"  B            {other.what}: {other.root}"]
    lines += [f"  note         {note}" for note in (*one.notes, *other.notes, *found.notes)]
    ignored = sum(c.ignored for c in found.compared)
    if ignored:
        lines.append(f"  ignored      {ignored:,} pixels that one of the two does not label")
    width = max(len("class"), *(len(name) for name in found.names))
    lines.append(f"\n  {'class':<{width}}  {'IoU':<24}{'Dice':<24}boundary F1")
    for row in _short(rows):
        name = cut(str(row["class"]), width)
        lines.append(
            f"  {name:<{width}}  {row['IoU']!s:<24}{row['Dice']!s:<24}{row['boundary F1']}"
        )
    lines.append("")
    lines += [f"  {name:<24}{value}" for name, value in _figures(head)]
    lines += [f"  {_rule(len(found.compared))}", f"  {CEILING}"]
    tables = "agreement.csv, confusion.csv, summary.csv, per_picture.csv"
    lines.append(f"  written      {root / 'report.html'}, {tables}, pictures/")
    return lines
