"""Which pictures below a folder are micrographs, and why the others are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matssl.core.errors import UserError
from matssl.core.wording import counted
from matssl.data import readers
from matssl.data.layouts import matching, naming
from matssl.data.layouts.matching import Matched
from matssl.data.layouts.pairing import Layout
from matssl.data.readers import Listing

MASK = "mask"
DRAWN = "drawn over other pictures"
JUNK = "previews or deleted files"
RESULTS = "results of matssl"
CLOSED = "may not be read"
ELSEWHERE = "not part of the layout"
MASKS_ELSEWHERE = "masks that are not used"
OTHER = "no pictures that are read"
# Tables of ours, and texts that microscopes write beside a picture of their name.
_TABLES = frozenset(("specimens.csv", "splits.csv", "classes.yaml", "classes.yml", "classes.csv"))
_BESIDE = frozenset((".txt", ".hdr"))
# Names that a line tells; of folders of masks.
LISTED, FOLDERS_TOLD = 4, 8


@dataclass(frozen=True)
class LeftOut:
    """A file that is no micrograph, or a folder that holds none.

    Attributes:
        path: of the file or the folder.
        why: one of the constants of this module.
        files: pictures it stands for; 0 where they were not counted.
    """

    path: Path
    why: str
    files: int = 1


@dataclass(frozen=True)
class Survey:
    """What lies in a folder.

    Attributes:
        images: micrographs, in natural order.
        left_out: everything else that is named like a picture, folders first told as a whole.
        matched: masks that were found by what they hold.
        others: files that are no pictures.
    """

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]
    matched: Matched
    others: tuple[Path, ...] = ()


def listed(root: Path) -> Listing:
    """Return what lies in a folder.

    Raises:
        UserError: no image does, or there is no folder.
    """
    found = readers.listing(root) if root.is_dir() else None
    if found is None or not found.images:
        readers.find_images(root)
    return found or Listing(())


def survey(
    root: Path,
    layouts: Sequence[Layout],
    pairing: bool = False,
    found: Listing | None = None,
) -> Survey:
    """Return which pictures below a folder are micrographs.

    Left out are what a layout of any folder on the way calls a mask by its name, what is a mask by
    what it holds, and what we or others drew. A folder that holds nothing else is taken as it is.

    Args:
        root: a folder, or one image.
        layouts: whose names of masks count.
        pairing: whether what the folder itself calls masks is to be matched with its images, too.
        found: what lies in the folder, where that is known.

    Raises:
        UserError: there is no image, or the folder is a run of ours.
    """
    if not root.is_dir():
        return Survey(tuple(readers.find_images(root)), (), Matched())
    found = listed(root) if found is None else found
    refuse_run(root)
    paths = found.images
    named = _by_name(root, paths, layouts)
    rest = [path for path in paths if named.isdisjoint((path, *path.parents))]
    drawn = _drawn(root, rest)
    pictures = set(rest) - drawn
    own = {path for layout in layouts for path in layout.no_micrographs(root)} if pairing else set()
    matched = matching.find(
        [path for path in paths if path in pictures or not own.isdisjoint((path, *path.parents))]
    )
    masks_too = matched.widows.union(matched.images)
    kept = tuple(path for path in rest if path in pictures and path not in masks_too)
    if not kept:
        return Survey(paths, _unread(found), Matched(), found.others)
    kept_set = set(kept)
    masks = [path for path in paths if path not in kept_set and path not in drawn]
    left_out = [
        *summed(root, masks, MASK, paths),
        *summed(root, sorted(drawn), DRAWN, paths),
        *_unread(found),
    ]
    return Survey(kept, tuple(left_out), matched, found.others)


def refuse_run(root: Path) -> None:
    """Refuse a folder of our own results as one of micrographs.

    Raises:
        UserError: it is one.
    """
    if readers.is_run([path.name for path in root.iterdir()]):
        raise UserError(
            f"{root} holds results of a run, and its pictures are no micrographs; give the folder "
            "of the micrographs"
        )


def summed(root: Path, files: Sequence[Path], why: str, paths: Sequence[Path]) -> list[LeftOut]:
    """Return files that are left out; a folder that holds nothing else stands for them all.

    Args:
        root: no folder above or beside it is named.
        files: left out.
        why: reason of all.
        paths: all pictures below the root.
    """
    whole: dict[Path, int] = {}
    for path in paths:
        for folder in path.parents:
            if folder == root:
                break
            whole[folder] = whole.get(folder, 0) + 1
    out: dict[Path, int] = {}
    for path in files:
        for folder in path.parents:
            if folder == root:
                break
            out[folder] = out.get(folder, 0) + 1
    told: dict[Path, int] = {}
    for path in files:
        folders = [f for f in path.parents if f in out and out[f] == whole[f]]
        place = folders[-1] if folders else path
        told[place] = out.get(place, 1)
    return [LeftOut(path, why, count) for path, count in sorted(told.items())]


def told(parts: Sequence[LeftOut]) -> list[str]:
    """Return in words which pictures are not taken for micrographs, and why."""
    masks = [part for part in parts if part.why == MASK]
    files = [part.path.name for part in masks if not part.path.is_dir()]
    folders = list(dict.fromkeys(part.path.name for part in masks if part.path.is_dir()))
    more = f" and {len(folders) - FOLDERS_TOLD} more" if len(folders) > FOLDERS_TOLD else ""
    lines = [f"folders of masks: {', '.join(folders[:FOLDERS_TOLD])}{more}"] if folders else []
    if files:
        lines.append(f"{counted(len(files), 'mask')} beside micrographs (first: {files[0]})")
    lines += _others([part for part in parts if part.why == OTHER])
    for why in dict.fromkeys(part.why for part in parts if part.why not in (MASK, OTHER)):
        these = [part for part in parts if part.why == why]
        number = sum(part.files for part in these)
        names = list(dict.fromkeys(part.path.name for part in these))
        more = " ..." if len(names) > LISTED else ""
        told = f"{counted(number, 'picture')}, " if number else ""
        places = f" (in {len(these)} places)" if len(these) > len(names) else ""
        lines.append(f"{told}{why}: {', '.join(names[:LISTED])}{more}{places}")
    return lines


def _others(parts: Sequence[LeftOut]) -> list[str]:
    """Return in words which files are no pictures, and which are pictures of another kind."""
    if not parts:
        return []
    counts: Counter[str] = Counter()
    for part in parts:
        counts[part.path.suffix.lower() or "no ending"] += part.files
    number = counted(counts.total(), "file that is no picture", "files that are no pictures")
    unread = readers.unread({part.path: part.files for part in parts})
    return [f"{number}: {_tally(counts)}", *unread]


def _tally(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    left = len(ordered) - LISTED
    more = f" and {counted(left, 'other kind')}" if left > 0 else ""
    return ", ".join(f"{name} ({count})" for name, count in ordered[:LISTED]) + more


def _by_name(root: Path, paths: Sequence[Path], layouts: Sequence[Layout]) -> set[Path]:
    """Return files and folders that a layout of their folder calls masks."""
    places = {path.parent for path in paths}
    folders = {f for p in places for f in (p, *p.parents) if f == root or root in f.parents}
    return {
        path for folder in folders for layout in layouts for path in layout.no_micrographs(folder)
    }


def named_masks(root: Path, paths: Sequence[Path], layouts: Sequence[Layout]) -> bool:
    """Return whether a layout of any folder calls some of the pictures below it masks."""
    named = _by_name(root, paths, layouts)
    return any(not named.isdisjoint((path, *path.parents)) for path in paths)


def _drawn(root: Path, pictures: Sequence[Path]) -> set[Path]:
    """Return pictures drawn from others: in folders of overlays, and a_overlay beside a."""
    beside = naming.drawn_from(pictures)
    inside = {
        path
        for path in pictures
        if any(map(naming.says_drawn, path.relative_to(root).parent.parts))
    }
    if not inside:
        return beside
    names = {name for p in pictures if p not in inside for name in naming.of_image(p)}
    return beside | {path for path in inside if not names.isdisjoint(naming.of_mask(path))}


def other_files(found: Listing) -> list[LeftOut]:
    """Return the files that are no pictures: of each ending the first, which stands for all."""
    kinds: dict[str, list[Path]] = {}
    # A description of a.tif is a.txt, or a-tif.hdr of TESCAN.
    known = {path.with_suffix("") for path in found.images}
    known |= {path.with_name(f"{path.stem}-{path.suffix[1:]}") for path in found.images}
    for path in found.others:
        end = path.suffix.lower()
        text = end in _BESIDE and path.with_suffix("") in known
        if path.name.lower() not in _TABLES and not text and not path.name.startswith("."):
            kinds.setdefault(end, []).append(path)
    return [LeftOut(files[0], OTHER, len(files)) for files in kinds.values()]


def _unread(found: Listing) -> tuple[LeftOut, ...]:
    """Return the folders that were not looked into, and the files that are no pictures."""
    kinds = ((found.junk, JUNK), (found.runs, RESULTS), (found.closed, CLOSED))
    folders = (LeftOut(path, why, 0) for paths, why in kinds for path in paths)
    return (*folders, *other_files(found))
