"""The one grouping of images by specimen: a table, an expression, folders, a guess at the names.

What is stronger comes first: ``specimens.csv`` (or ``--specimens FILE``), ``--group_regex``, the
sequence whose frames they are (where there are sequences), a folder per specimen, what all names
together tell. Where none says it, each image is its own.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.specimens.guess import MAGNIFICATION_FIRST, guess, places
from matssl.data.specimens.names import Kind, parse
from matssl.data.specimens.sequences import Sequences, expanded
from matssl.data.specimens.sequences import find as find_sequences
from matssl.data.specimens.table import FILE_NAME, Row, SpecimenTable, read_table

SHOWN = 4
# Folders that hold parts of a data set or kinds of files, and say nothing of specimens.
_NEUTRAL = re.compile(
    r"(train|training|val|valid|validation|validate|test|predict|unused)s?\d?([_\- ].*)?"
    r"|.*[_\- ](test|train|val)"
    r"|images?([_\- ]?tr|[_\- ]?ts)?|imgs?|inputs?|raw|raw[_\- ]?(images?|data)|originals?|data"
    r"|dataset|pictures?|photos?|bilder|fotos?|micrographs?|tiffs?|tifs?|pngs?|jpe?gs?|bmps?"
    r"|unlabell?ed|labell?ed|pool|files?|img_dir|all|src|rgb"
)
_SETTINGS = (Kind.SETTING, Kind.STATE)
_NO_IDENTITY = (*_SETTINGS, Kind.DATE, Kind.PLACE)
# Sides of pictures in the names of folders: bubble_512.
_SIDES = {str(2**n) for n in range(6, 14)}

How = Literal["table", "regex", "sequences", "folders", "names", "own"]


@dataclass(frozen=True)
class Grouping:
    """Which specimen each image is of, and who says so.

    Attributes:
        names: specimen of each image.
        how: what says it; "own" where nothing does and each image (with its tiles, and its pictures
            in other settings) counts as one.
        source: table, expression or words for what says it.
        unsure: images that count as one specimen each, since nothing tells theirs.
        notes: what else was noticed, in words.
        rows: of the table, by image.
        sequences: which of them are frames that follow each other.
    """

    names: tuple[str, ...]
    how: How
    source: str = ""
    unsure: int = 0
    notes: tuple[str, ...] = ()
    rows: Mapping[Path, Row] = field(default_factory=dict)
    sequences: Sequences = Sequences()

    @staticmethod
    def empty() -> Grouping:
        """Return the grouping of no image."""
        return Grouping((), "own")

    @property
    def told(self) -> bool:
        """Whether the user said it, rather than the names of files and folders."""
        return self.how in ("table", "regex")

    @property
    def pixel_sizes(self) -> dict[Path, float]:
        """Pixel size of each image whose row in the table has one, nm."""
        return {p: row.pixel_size for p, row in self.rows.items() if row.pixel_size is not None}

    @property
    def text(self) -> str:
        """The grouping in one line."""
        images = counted(len(self.names), "image")
        if self.how == "own":
            if len(self.names) == 1:
                return f"1 image, a specimen of its own ({FILE_NAME} names it)"
            together = len(self.names) - len(set(self.names))
            alike = f" ({together} more show a place again)" if together else ""
            return (
                f"unsure which of {images} are of one specimen: each image is its own{alike}; "
                f"{FILE_NAME}, a folder for each or --group_regex says it"
            )
        sizes = Counter(self.names)
        most = ", ".join(f"{name} ({count})" for name, count in sizes.most_common(SHOWN))
        more = " ..." if len(sizes) > SHOWN else ""
        own = f"; unsure of {counted(self.unsure, 'image')}: each is its own" if self.unsure else ""
        number = counted(len(sizes), "specimen")
        return f"{number} in {images}, {self.source}: {most}{more}{own}"


def group(
    paths: Sequence[Path],
    root: Path | str,
    *,
    regex: str | None = None,
    specimens: Path | str | None = None,
    pixel_size: str | None = None,
    splits: Sequence[str] = (),
    sequence: str | None = None,
    frames: bool = False,
) -> Grouping:
    """Return which specimen each image is of.

    Args:
        paths: images, or pages of stacks (:func:`pictures`); those outside ``root`` count as if
            they lay in it.
        root: folder of the data set.
        regex: ``--group_regex``, sought in the path from ``root`` without folders of splits and of
            images, then in the whole path from ``root``. One that begins with ^ is also sought in
            the file name. Its first group (or all of it) names the specimen.
        specimens: ``--specimens``, a table; None takes ``specimens.csv`` of the folder.
        pixel_size: ``--pixel_size``, which beats those of the table.
        splits: names of folders that are splits here, beside the usual ones.
        sequence: as ``regex``, said by the layout of the folder and not by the user: stronger than
            folders and names, weaker than the others.
        frames: whether names of files tell sequences; else the table alone does.

    Raises:
        UserError: a table or an expression that does not fit, or cuts through a sequence.
    """
    places = [_Place.of(path, Path(root), splits) for path in paths]
    rows, tables = _rows(paths, Path(root), specimens)
    named = any(row.specimen for row in rows.values())
    notes: tuple[str, ...] = ()
    if pixel_size is not None and any(row.pixel_size is not None for row in rows.values()):
        rows = {path: replace(row, pixel_size=None) for path, row in rows.items()}
        notes = (f"--pixel_size beats the pixel sizes of {_listed(tables)}",)
    elif rows and not named:
        notes = (f"{_listed(tables)} gives pixel sizes and names no specimen",)
    sequences = find_sequences(paths, Path(root), rows, frames)
    if named:
        unsaid = "; --group_regex is not asked" if regex else ""
        found = _by_table(places, rows, f"as {_listed(tables)} says{unsaid}")
    elif regex:
        found = _by_regex(places, regex)
    elif sequences.frames:
        known = (sequences.frames.get(path) for path in paths)
        names = [frame.sequence if frame else None for frame in known]
        found = _settled(places, names, ("sequences", "by sequence"))
    elif sequence and any(re.search(sequence, place.short) for place in places):
        found = _by_sequence(places, sequence)
    else:
        found = _by_folders(places) or _by_names(places)
    sequences.refuse_cut(paths, found.names, found.source)
    notes = (*found.notes, *notes)
    return Grouping(found.names, found.how, found.source, found.unsure, notes, rows, sequences)


def pictures(
    paths: Sequence[Path], root: Path | str, specimens: Path | str | None, pages: bool
) -> dict[Path, tuple[Path, ...]]:
    """Return the pictures in each file: the pages of a stack that is a sequence, else itself.

    Args as those of :func:`group`; ``pages``: whether every stack is a sequence; else those alone
    that the table names as one.

    Raises:
        UserError: a table that does not fit, or a stack that cannot be read.
    """
    return expanded(paths, _rows(paths, Path(root), specimens)[0], pages)


@dataclass(frozen=True)
class _Place:
    """Where an image lies.

    Attributes:
        path: of the image.
        whole: path from the root, without ending.
        short: the same without folders of splits and images.
        folders: those that may name a specimen.
        home: folders that tell two pictures of one name apart.
        dated: the name behind the folders of days, and such as X20, of which it may be a part.
    """

    path: Path
    whole: str
    short: str
    folders: tuple[str, ...]
    home: tuple[str, ...]
    dated: str

    @property
    def stem(self) -> str:
        return self.path.stem

    @staticmethod
    def of(path: Path, root: Path, splits: Sequence[str]) -> _Place:
        try:
            inside = path.relative_to(root)
        except ValueError:
            inside = Path(path.name)
        folders = inside.parts[:-1]
        named = [f for f in folders if not _names_a_part(f, splits)]
        return _Place(
            path,
            PurePosixPath(*folders, path.stem).as_posix(),
            PurePosixPath(*named, path.stem).as_posix(),
            tuple(f for f in named if not _only(f, _NO_IDENTITY)),
            tuple(f for f in folders if not _only(f, _SETTINGS) or _may_hold_a_part(f)),
            "_".join((*(f for f in named if _may_hold_a_part(f)), path.stem)),
        )


def _names_a_part(folder: str, splits: Sequence[str]) -> bool:
    """Return whether a folder holds a split or a kind of files, whatever the specimens."""
    if _NEUTRAL.fullmatch(folder.lower()):
        return True
    return folder in splits and not any(part.rank for part in parse(folder).parts)


def _may_hold_a_part(folder: str) -> bool:
    """Return whether what a file of this folder shows may be a part of what the folder names."""
    day = _only(folder, (Kind.DATE,)) and bool(parse(folder).parts)
    return day or MAGNIFICATION_FIRST.fullmatch(folder.lower()) is not None


def _only(folder: str, kinds: Sequence[Kind]) -> bool:
    """Return whether the name of a folder has no part of another kind."""
    return all(part.kind in kinds for part in parse(folder).parts)


# --- a table --------------------------------------------------------------------------------------
def _rows(
    paths: Sequence[Path], root: Path, given: Path | str | None
) -> tuple[dict[Path, Row], list[Path]]:
    """Return the rows of the images' tables, and the tables.

    Raises:
        UserError: a table does not fit the folder.
    """
    if given is not None:
        found = [(Path(given), root)]
    else:
        above = {f for path in paths for f in path.parents if f == root or root in f.parents}
        holding = [f for f in sorted(above) if (f / FILE_NAME).is_file()]
        # A table speaks for all that lies below it.
        top = [f for f in holding if not any(other in f.parents for other in holding)]
        found = [(f / FILE_NAME, f) for f in top]
    rows: dict[Path, Row] = {}
    tables = []
    for source, folder in found:
        table = read_table(source, "--specimens" if given is not None else "")
        own = [path for path in paths if folder in path.parents]
        # A line that names a stack speaks of all its pages.
        files = {path: readers.file_of(path) for path in own}
        told = table.of(
            list(dict.fromkeys(files.values())),
            folder,
            functools.partial(readers.find_images, folder),
        )
        rows |= {path: told[file] for path, file in files.items() if file in told}
        tables.append(table)
    _check_missing(paths, root, rows, tables)
    return rows, [table.source for table in tables]


def _check_missing(
    paths: Sequence[Path], root: Path, rows: Mapping[Path, Row], tables: Sequence[SpecimenTable]
) -> None:
    if not any(table.names_specimens for table in tables):
        return
    inside = [path for path in paths if root in path.parents]
    missing = [path for path in inside if path not in rows or not rows[path].specimen]
    if missing:
        names = [path.relative_to(root).as_posix() for path in missing]
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(
            f"{_listed([t.source for t in tables])} names no specimen for {len(missing)} of "
            f"{counted(len(inside), 'image')} ({some}); add their lines"
        )


def _by_table(places: Sequence[_Place], rows: Mapping[Path, Row], source: str) -> Grouping:
    return _settled(
        places,
        [rows[p.path].specimen if p.path in rows else None for p in places],
        ("table", source),
    )


# --- an expression --------------------------------------------------------------------------------
def _by_regex(places: Sequence[_Place], regex: str) -> Grouping:
    """Return the groups of ``--group_regex``; images it does not fit are their own.

    Raises:
        UserError: it is invalid, or fits none.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"--group_regex {regex!r} is not valid: {error}") from error
    named: list[str | None] = []
    by_name = 0
    for place in places:
        match = pattern.search(place.short) or pattern.search(place.whole)
        if match is None and regex.startswith("^"):
            match = pattern.search(place.stem)
            by_name += match is not None
        name = None
        if match is not None:
            name = match[1] if match.groups() else match[0]
        named.append(name or None)
    if places and not any(named):
        raise UserError(
            f"--group_regex {regex!r} fits none of the {len(places)} file names (first: "
            f"{places[0].path.name})"
        )
    found = _settled(places, named, ("regex", "by --group_regex"))
    notes = []
    if by_name:
        notes.append(
            f"--group_regex begins with ^ and fits the path of {counted(by_name, 'image')} from "
            "the folder nowhere: their file names were taken"
        )
    return Grouping(found.names, found.how, found.source, found.unsure, tuple(notes))


def _by_sequence(places: Sequence[_Place], sequence: str) -> Grouping:
    """Return a specimen for each sequence of frames; other images are their own."""
    found = (re.search(sequence, place.short) for place in places)
    named = [match[1] if match else None for match in found]
    return _settled(places, named, ("names", "by the sequence in their names"))


# --- folders --------------------------------------------------------------------------------------
def _by_folders(places: Sequence[_Place]) -> Grouping | None:
    """Return a specimen for each folder, None where folders say nothing.

    A folder whose files name several specimens holds these. Folders whose names and files have
    nothing in common are a collection; there the names are asked.
    """
    members: dict[tuple[str, ...], list[_Place]] = {}
    for place in places:
        members.setdefault(place.folders, []).append(place)
    if len(set(members) - {()}) < 2:
        return None
    builds = Counter(kinds for own in members.values() for kinds in {_build(own)})
    named: dict[Path, str | None] = {}
    for folders, own in members.items():
        told = _told(folders)
        guesses = guess([place.dated for place in own])
        for place, name in zip(own, guesses, strict=True):
            if told == "specimen":
                named[place.path] = _specimen_folder(folders)
            elif name is not None and (told != "code" or _strong(name)):
                named[place.path] = "/".join((*folders, name))
            elif folders and (told == "code" or builds[_build(own)] > 1):
                named[place.path] = "/".join(folders)
            else:
                named[place.path] = None
    if len(set(named.values()) - {None}) < 2:
        return None
    return _settled(places, [named[p.path] for p in places], ("folders", "by their folders"))


def _told(folders: Sequence[str]) -> Literal["specimen", "code", "words"]:
    """Return how plainly the names of folders tell a specimen."""
    parts = [part for folder in folders for part in parse(folder).parts]
    if any(part.rank for part in parts):
        return "specimen"
    codes = (Kind.CODE, Kind.TREATMENT, Kind.LOT)
    numbers = [part for part in parts if part.kind is Kind.NUMBER and part.key not in _SIDES]
    return "code" if numbers or any(part.kind in codes for part in parts) else "words"


def _specimen_folder(folders: Sequence[str]) -> str:
    """Return the folders up to the last that says specimen; what is below it are its fields."""
    last = max(i for i, f in enumerate(folders) if any(part.rank for part in parse(f).parts))
    return "/".join(folders[: last + 1])


def _strong(name: str) -> bool:
    """Return whether more than a number tells the specimen; numbers may count fields."""
    return any(part.kind is not Kind.NUMBER for part in parse(name).parts)


def _build(places: Sequence[_Place]) -> tuple[Kind, ...]:
    """Return of which kinds of parts most names of a folder are made."""
    kinds = Counter(tuple(part.kind for part in parse(place.stem).parts) for place in places)
    return kinds.most_common(1)[0][0]


# --- names ----------------------------------------------------------------------------------------
def _by_names(places: Sequence[_Place]) -> Grouping:
    named = guess([place.dated for place in places])
    return _settled(places, named, ("names", "as the file names tell"))


def _settled(
    places: Sequence[_Place], named: Sequence[str | None], how: tuple[How, str]
) -> Grouping:
    """Return the grouping in which an image without a specimen is its own."""
    unsure = sum(name is None for name in named)
    if unsure == len(places):
        how = ("own", "")
    guessed = how[0] in ("names", "folders", "own")
    own = _own(places, named, guessed)
    names = tuple(a if a is not None else b for a, b in zip(named, own, strict=True))
    return Grouping(names, how[0], how[1], unsure)


def _own(places: Sequence[_Place], named: Sequence[str | None], guessed: bool) -> list[str]:
    """Return a name for each image that stands for itself, other than all names of specimens.

    Tiles of one picture and pictures of one place share it, where the names are asked at all.
    """
    shared = _shared(places) if guessed else [place.stem for place in places]
    keys = [(place.home, key.lower()) for place, key in zip(places, shared, strict=True)]
    homes: dict[str, set[object]] = {}
    for key, word in zip(keys, shared, strict=True):
        homes.setdefault(word.lower(), set()).add(key)
    taken = {name for name in named if name is not None} if guessed else set()
    own = []
    for place, word in zip(places, shared, strict=True):
        if len(homes[word.lower()]) > 1:
            word = PurePosixPath(*place.home, word).as_posix()
        own.append(place.path.name if word in taken else word)
    return own


def _shared(places_of: Sequence[_Place]) -> list[str]:
    """Return each name as far as it is that of a place, of the first picture that shows it."""
    stems = [place.stem for place in places_of]
    first: dict[str, str] = {}
    keys = places(stems)
    counts = Counter(zip([p.home for p in places_of], keys, strict=True))
    for stem, key in zip(stems, keys, strict=True):
        first.setdefault(key, parse(stem).parent[: len(key)])
    return [
        first[key] if counts[place.home, key] > 1 else stem
        for place, stem, key in zip(places_of, stems, keys, strict=True)
    ]


def _listed(sources: Sequence[Path]) -> str:
    names = [source.name for source in sources]
    return names[0] if len(set(names)) == 1 else ", ".join(names[:3])
