"""Sequences: pictures that are frames of one film or slices of one volume, and who is beside whom.

``4.2V-001.png`` is frame 1 of the sequence ``4.2V`` of its folder; page 3 of ``film.tif`` is frame
3 of the sequence ``film``; ``specimens.csv`` says it of any name (columns ``sequence``, ``frame``).

A frame's neighbours are those of the frame **numbers** beside its own, not of the ranks: where
numbers 1, 2 and 5 exist, 5 is no neighbour of 2. What is not there, at the ends and in a gap, is
stood in for by the nearest frame on the way from the frame itself to the one that lacks, at worst
by the frame itself. So 1, 2, 5 at depth 3 are read as (1, 1, 2), (1, 2, 2), (5, 5, 5).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.specimens.table import Row, relative

# As published; the ending is cut off before.
PATTERN = re.compile(r"^(.*?)[-_]?(\d+)$")
# Numbers beyond are dates or codes that count nothing.
HIGHEST = 10**9
SHOWN = 3


@dataclass(frozen=True)
class Frame:
    """Where a picture stands in its sequence.

    Attributes:
        sequence: its name; the folder comes first, where the pictures have several.
        number: of the frame.
    """

    sequence: str
    number: int


@dataclass(frozen=True)
class Sequences:
    """Pictures that follow each other.

    Attributes:
        frames: place of each picture that has one; a sequence has two frames or more.
        alone: pictures of no sequence.
    """

    frames: Mapping[Path, Frame] = field(default_factory=dict)
    alone: int = 0

    @property
    def members(self) -> dict[str, dict[int, Path]]:
        """The frames of each sequence by number, in order."""
        found: dict[str, dict[int, Path]] = defaultdict(dict)
        for path, frame in sorted(self.frames.items(), key=lambda item: item[1].number):
            found[frame.sequence][frame.number] = path
        return dict(found)

    def among(self, paths: Iterable[Path]) -> Sequences:
        """Return what is left where only some of the pictures are at hand."""
        here = set(paths)
        frames = {path: frame for path, frame in self.frames.items() if path in here}
        return Sequences(frames, len(here) - len(frames))

    def neighbours(self, depth: int, closed: Collection[Path] = ()) -> dict[Path, tuple[Path, ...]]:
        """Return each frame with its neighbours, ``depth`` pictures, the earliest first.

        Args:
            depth: odd.
            closed: pictures that may not be opened; they are gaps.
        """
        found = {}
        for frames in self.members.values():
            frames = {number: path for number, path in frames.items() if path not in closed}
            numbers = list(frames)
            apart = interval(numbers)
            for number, path in frames.items():
                found[path] = tuple(
                    frames[nearest(numbers, number, number + apart * offset)]
                    for offset in range(-(depth // 2), depth // 2 + 1)
                )
        return found

    def refuse_cut(self, paths: Sequence[Path], specimens: Sequence[str], source: str) -> None:
        """Refuse specimens that cut through a sequence: frames beside each other are near-copies.

        Args:
            paths: pictures.
            specimens: of each.
            source: what says them, in words.

        Raises:
            UserError: it names the first.
        """
        of: dict[str, str] = {}
        for path, specimen in zip(paths, specimens, strict=True):
            frame = self.frames.get(path)
            if frame is not None and of.setdefault(frame.sequence, specimen) != specimen:
                raise UserError(
                    f"frames of the sequence {frame.sequence} are of the specimens "
                    f"{of[frame.sequence]} and {specimen}, {source}; give them one specimen, or "
                    "two sequences (columns sequence and frame of specimens.csv)"
                )

    def beside(self, distance: int) -> dict[Path, tuple[Path, ...]]:
        """Return of each frame the others that are at most ``distance`` frames away."""
        near = self.neighbours(2 * distance + 1)
        return {
            path: tuple(dict.fromkeys(other for other in others if other != path))
            for path, others in near.items()
        }

    def text(self, depth: int) -> str:
        """Return the sequences in one line."""
        members = self.members
        if not members:
            return "none found"
        most = ", ".join(
            f"{name} ({len(frames)})" for name, frames in list(members.items())[:SHOWN]
        )
        more = " ..." if len(members) > SHOWN else ""
        told = f"{counted(len(members), 'sequence')} of {len(self.frames)} frames: {most}{more}"
        if depth > 1:
            told += f"; each frame is read with {depth // 2} before and {depth // 2} after it"
        return told

    def notes(self, depth: int) -> tuple[str, ...]:
        """Return what is to be said of numbers that lack, in words."""
        told, gaps = [], []
        for name, frames in self.members.items():
            numbers = list(frames)
            apart = interval(numbers)
            if apart > 1:
                told.append(
                    f"frames of {name} are numbered by {apart}: the next of {numbers[0]} "
                    f"is {numbers[0] + apart}"
                )
            lacking = [
                f"{a + apart}" if b - a <= 2 * apart else f"{a + apart} to {b - 1}"
                for a, b in zip(numbers, numbers[1:], strict=False)
                if b - a > apart
            ]
            if lacking:
                rest = " ..." if len(lacking) > SHOWN else ""
                gaps.append(f"{name} ({', '.join(lacking[:SHOWN])}{rest})")
        if gaps:
            more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
            told.append(
                f"missing frames: {'; '.join(gaps[:SHOWN])}{more}; the nearest frame on the way to "
                "one stands in for it, as at the ends of a sequence"
            )
        if self.alone and depth > 1:
            number = counted(self.alone, "image")
            told.append(f"{number} of no sequence: each stands for its neighbours, too")
        return tuple(told)


def misfit(one: Path | str, size: Sequence[int], other: Path | str, its: Sequence[int]) -> str:
    """Return why two frames of a sequence are no neighbours, in words.

    Args:
        one: a frame.
        size: its rows and columns above the information bar.
        other: the frame beside it.
        its: rows and columns of that one.
    """
    return (
        f"{one} has {size[1]} x {size[0]} pixels above its bar and its neighbour {other} {its[1]} "
        f"x {its[0]}; frames of a sequence are alike (--crop_bottom N cuts the same rows off all)"
    )


def interval(numbers: Sequence[int]) -> int:
    """Return what frames are numbered by: the most frequent step, of equal ones the smallest."""
    steps = Counter(b - a for a, b in zip(numbers, numbers[1:], strict=False))
    return min(steps, key=lambda step: (-steps[step], step), default=1)


def nearest(frames: Sequence[int], centre: int, wanted: int) -> int:
    """Return the frame nearest to a wanted number, of those between it and the centre.

    Args:
        frames: numbers that exist, in order, the centre among them.
        centre: whose neighbour is sought.
        wanted: number of the neighbour.
    """
    if wanted < centre:
        return frames[bisect_left(frames, wanted)]
    return frames[bisect_right(frames, wanted) - 1]


def named(path: Path) -> tuple[str, int] | None:
    """Return the sequence and the frame that a file name tells; None where it ends in no number."""
    match = PATTERN.match(path.stem)
    if match is None or int(match[2]) > HIGHEST:
        return None
    return match[1], int(match[2])


def expanded(
    paths: Sequence[Path], rows: Mapping[Path, Row], every: bool
) -> dict[Path, tuple[Path, ...]]:
    """Return the pictures in each file: the pages of a stack, else the file itself.

    Args:
        paths: files.
        rows: of the table of specimens.
        every: whether each stack is one of frames; else those alone that the table gives a
            sequence and no number of a frame.

    Raises:
        UserError: see :func:`matssl.data.readers.frames`.
    """
    found: dict[Path, tuple[Path, ...]] = {}
    for path in paths:
        row = rows.get(path)
        told = row is not None and row.sequence != ""
        single = row is not None and row.frame is not None
        pages = readers.frames(path) if (every or told) and not single else ()
        found[path] = pages or (path,)
    return found


def find(paths: Sequence[Path], root: Path, rows: Mapping[Path, Row], every: bool) -> Sequences:
    """Return the sequences of some pictures.

    Args:
        paths: pictures, pages of stacks as :func:`expanded` gives them.
        root: folder of the data set.
        rows: of the table of specimens, which beats names.
        every: whether names of files tell; else the table alone.

    Raises:
        UserError: two pictures are one frame, or one that the table names has no number.
    """
    placed: dict[Path, tuple[str, str, int]] = {}
    for path in paths:
        row = rows.get(path)
        file = readers.file_of(path)
        told = named(path)
        if row is not None and row.sequence:
            number = row.frame if row.frame is not None else (told[1] if told else None)
            if number is None:
                raise UserError(
                    f"the table of specimens gives {relative(path, root)} the sequence "
                    f"{row.sequence} and no frame, and its name ends in no number; fill the column "
                    "frame"
                )
            placed[path] = "", row.sequence, number
        elif file != path and told is not None:
            placed[path] = _folder(file, root), file.stem, told[1]
        elif every and told is not None:
            folder = _folder(file, root)
            placed[path] = folder, told[0] or file.parent.name, told[1]
    folders = {folder for folder, _, _ in placed.values() if folder}
    frames: dict[Path, Frame] = {}
    taken: dict[Frame, Path] = {}
    for path, (folder, name, number) in placed.items():
        frame = Frame(f"{folder}/{name}" if len(folders) > 1 and folder else name, number)
        other = taken.setdefault(frame, path)
        if other != path:
            raise UserError(
                f"{relative(other, root)} and {relative(path, root)} are both frame {number} of "
                f"the sequence {frame.sequence}; remove one, or say with the columns sequence and "
                "frame of specimens.csv which frame each is"
            )
        frames[path] = frame
    sizes = Counter(frame.sequence for frame in frames.values())
    kept = {path: frame for path, frame in frames.items() if sizes[frame.sequence] > 1}
    return Sequences(kept, len(paths) - len(kept))


def none(flag: str, folder: Path | str) -> str:
    """Return why a flag of sequences is no use in a folder, in words."""
    return (
        f"{flag}: no images in {folder} are frames of one sequence; name them film-001.png, "
        "film-002.png, give TIFF files of several pages, or say it in specimens.csv (columns "
        "image, sequence, frame)"
    )


def around(path: Path, depth: int) -> tuple[Path, ...]:
    """Return a picture with its neighbours, as its folder or its stack alone tells them.

    Args:
        path: of a file, or of a page of a stack.
        depth: odd number of pictures.

    Raises:
        UserError: it is a stack as a whole, or cannot be read.
    """
    file = readers.file_of(path)
    if file != path:
        beside = list(readers.frames(file))
    elif pages := readers.frames(file):
        raise UserError(
            f"{path} is a stack of {len(pages)} pages, and the model takes one frame with its "
            f"neighbours; name the page: {pages[0]}"
        )
    else:
        own = named(path)
        files = [p for p in path.parent.iterdir() if p.is_file() and readers.is_image_name(p.name)]
        beside = [p for p in files if (told := named(p)) and own and told[0] == own[0]]
        # One that differs in its ending alone is another picture of the frame.
        beside = [p for p in beside if p.suffix == path.suffix]
    near = find(beside, path.parent, {}, every=True).neighbours(depth)
    return near.get(path, (path,) * depth)


def chained(stacks: Sequence[tuple[Path, ...]]) -> tuple[list[Path], list[int]]:
    """Return pictures in a row of which each stack is a part, and where each begins in it.

    Stacks that follow each other share their frames: (1, 1, 2), (1, 2, 3), (2, 3, 3) are parts of
    1, 1, 2, 3, 3.
    """
    row: list[Path] = []
    starts = []
    for stack in stacks:
        shared = next(
            n for n in range(len(stack), -1, -1) if n == 0 or tuple(row[-n:]) == stack[:n]
        )
        row += stack[shared:]
        starts.append(len(row) - len(stack))
    return row, starts


def _folder(path: Path, root: Path) -> str:
    """Return the folder of a picture from the root of its data set."""
    folder = relative(path.parent, root)
    return "" if folder == "." else folder
