"""Which picture a drawing belongs to, by the name that the annotation file gives.

Files name pictures as the annotator's computer did: with folders that are elsewhere by now, in
other capitals, or without an ending. The longest part of the path that one picture's path ends
with decides; what is not clear is refused, never chosen.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted, cut
from matssl.data.annotations.drawing import Drawing, stem_of
from matssl.data.readers import header, is_image_name, read

Index = Mapping[str, Sequence[tuple[tuple[str, ...], Path]]]
SHOWN = 5
# What Label Studio puts before the name of a picture that is uploaded, in all that it exports.
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


@dataclass(frozen=True)
class Paired:
    """Pictures and what was drawn on them.

    Attributes:
        found: each picture that is annotated, in the order of the pictures.
        absent: drawings of which the picture is not there.
        bare: pictures without a drawing, or with one that holds no shape with an area.
        notes: names that fit only in part, in words.
    """

    found: tuple[tuple[Path, Drawing], ...]
    absent: tuple[Drawing, ...]
    bare: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Fit:
    """How a name fits a picture: folders of it that do not, and whether the ending differs."""

    path: Path
    dropped: int
    other_folder: bool
    other_ending: bool
    turn: int


def pair(drawings: Sequence[Drawing], images: Sequence[Path], flag: str = "--images") -> Paired:
    """Return which picture each drawing belongs to.

    Args:
        drawings: of any files.
        images: the pictures.
        flag: that named the pictures, for messages.

    Raises:
        UserError: a name fits several pictures, or a picture is annotated twice.
    """
    by_name, by_stem = _index(images, stems=False), _index(images, stems=True)
    fits: dict[Path, list[tuple[_Fit, Drawing]]] = defaultdict(list)
    absent: list[Drawing] = []
    unclear: list[tuple[Drawing, list[Path]]] = []
    # Where files name S1/a.png and S2/a.png, a.png is none of them.
    tails = _tails(drawings)
    for drawing in drawings:
        fit, several = _fit(drawing, by_name, by_stem)
        kept = _parts(drawing.picture)[fit.dropped :] if fit is not None else ()
        if fit is not None and fit.dropped and not fit.turn and tails[kept] > 1:
            absent.append(drawing)
        elif fit is not None:
            fits[fit.path].append((fit, drawing))
        elif several:
            unclear.append((drawing, several))
        else:
            absent.append(drawing)
    if unclear:
        drawing, several = unclear[0]
        shown = ", ".join(str(path) for path in several[:SHOWN])
        raise UserError(
            f"{drawing.source} names {cut(drawing.picture)}, and {counted(len(unclear), 'name')} "
            f"of the kind fit several pictures ({shown}): give the folder of the pictures that "
            f"were annotated as {flag}, or take the others out"
        )
    chosen: dict[Path, tuple[_Fit, Drawing]] = {}
    for path, several_fits in fits.items():
        best, absent_ones = _best(path, several_fits)
        chosen[path] = best
        absent += absent_ones
    found = tuple((path, chosen[path][1]) for path in images if path in chosen)
    shapes = {path for path, drawing in found if drawing.shapes}
    return Paired(
        tuple((path, drawing) for path, drawing in found if path in shapes),
        tuple(absent),
        tuple(path for path in images if path not in shapes),
        _notes([fit for fit, _ in chosen.values()], [drawing for _, drawing in chosen.values()]),
    )


def _parts(path: str) -> tuple[str, ...]:
    plain = unicodedata.normalize("NFC", path).casefold()
    return tuple(part for part in plain.split("/") if part)


def _tails(drawings: Sequence[Drawing]) -> Counter[tuple[str, ...]]:
    """Return of how many different pictures of the files a path is the end."""
    names = {_parts(drawing.picture) for drawing in drawings}
    return Counter(name[at:] for name in names for at in range(len(name)))


def _index(images: Sequence[Path], stems: bool) -> Index:
    """Return pictures by the last part of their path, with all its parts."""
    found: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
    for path in images:
        whole = path.resolve().parent.as_posix() + "/" + path.name
        parts = _parts(stem_of(whole) if stems else whole)
        found[parts[-1]].append((parts, path))
    return found


def _fit(drawing: Drawing, by_name: Index, by_stem: Index) -> tuple[_Fit | None, list[Path]]:
    """Return the picture of a drawing; without one, those among which it does not decide."""
    several: list[Path] = []
    names = [drawing.picture, *drawing.also]
    folder, slash, last = drawing.picture.rpartition("/")
    if UPLOADED.match(last):
        names.append(folder + slash + UPLOADED.sub("", last))
    for turn, name in enumerate(names):
        whole = _parts(name)
        ended = bool(whole) and is_image_name(whole[-1])
        for dropped in range(len(whole)):
            for index, exact in ((by_name, True), (by_stem, False)):
                parts = whole[dropped:]
                if not exact:
                    parts = (*parts[:-1], stem_of(parts[-1]))
                fitting = [
                    (full, path)
                    for full, path in index.get(parts[-1], ())
                    if full[len(full) - len(parts) :] == parts
                ]
                if len(fitting) > 1:
                    # Names that differ by capitals alone.
                    same = [one for one in fitting if one[1].name == name.rsplit("/", 1)[-1]]
                    fitting = same if len(same) == 1 else fitting
                if len(fitting) == 1:
                    full, path = fitting[0]
                    other = dropped > 0 and len(full) > len(parts)
                    return _Fit(path, dropped, other, ended and not exact, turn), []
                several = several or [path for _, path in fitting]
            if several:
                break
    return None, several


def _best(
    path: Path, fits: list[tuple[_Fit, Drawing]]
) -> tuple[tuple[_Fit, Drawing], list[Drawing]]:
    """Return the drawing that names most of a picture's path, and those that mean another one.

    Raises:
        UserError: several name as much of it.
    """
    least = min((fit.turn, fit.dropped) for fit, _ in fits)
    best = [(fit, drawing) for fit, drawing in fits if (fit.turn, fit.dropped) == least]
    if len(best) > 1:
        one, other = best[0][1].source, best[1][1].source
        where = f"in {one} and {other}" if one != other else f"in {one}"
        times = "twice" if len(best) == 2 else f"{len(best)} times"
        raise UserError(f"{path.name} is annotated {times}, {where}; take all but one out")
    return best[0], [drawing for fit, drawing in fits if fit is not best[0][0]]


def _notes(fits: Sequence[_Fit], drawings: Sequence[Drawing]) -> tuple[str, ...]:
    notes = []
    for wrong, told in (
        ([fit.other_ending for fit in fits], "another ending than the file says"),
        ([fit.other_folder and not fit.turn for fit in fits], "other folders than the file says"),
        ([fit.turn > 0 for fit in fits], "another name than the file says"),
    ):
        where = [at for at, one in enumerate(wrong) if one]
        if where:
            said = f"{drawings[where[0]].picture} is {fits[where[0]].path.name}"
            notes.append(f"{counted(len(where), 'picture')} found under {told} (first: {said})")
    return tuple(notes)


def size_of(path: Path, drawing: Drawing | None = None) -> tuple[int, int]:
    """Return rows and columns of a picture, upright as annotators see it.

    Raises:
        UserError: the picture cannot be read, or was drawn upon at another size.
    """
    said = None if drawing is None else drawing.size
    head = header(path)
    size = head.height, head.width
    if head.kind != "png" or (said is not None and size != said):
        # Cameras say beside the pixels that a picture lies on its side.
        rows, columns = read(path).pixels.shape[:2]
        size = rows, columns
    if drawing is not None and said is not None and size != said:
        raise UserError(
            f"{path} has another size than the picture that was annotated: {size[0]} x {size[1]} "
            f"pixels (rows x columns), and {said[0]} x {said[1]} in {drawing.source}; give the "
            "pictures that were annotated as --images"
        )
    return size
