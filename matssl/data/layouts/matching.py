"""Masks among pictures, whatever they are called: few values, stem and size of another picture.

Nothing is opened where no stems match. Of many files of one kind (folder, ending, what the name has
besides the image's) a few are looked at, all of them where these disagree.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from matssl.data.layouts import content, naming
from matssl.data.layouts.content import Holds, Size

# Where no more files than this may be masks, all are looked at; of more so many, but FEWEST of each
# kind, before one is concluded for its others.
LOOKED_AT, FEWEST = 600, 2


@dataclass(frozen=True)
class Kind:
    """Files that are alike in all but their stem.

    Attributes:
        folder: they lie in.
        besides: what their names have besides the image's, * for the image's.
        suffix: of the files.
    """

    folder: Path
    besides: str
    suffix: str


@dataclass
class Matched:
    """What is a mask among pictures.

    Attributes:
        images: of each mask the pictures it may belong to, nearest first; they agree in stem and
            size. Never empty.
        kinds: of each mask, which others it goes with.
        widows: pictures of few values in folders of masks, whose own picture is not there.
    """

    images: dict[Path, list[Path]] = field(default_factory=dict)
    kinds: dict[Path, Kind] = field(default_factory=dict)
    widows: set[Path] = field(default_factory=set)

    @cached_property
    def by_image(self) -> dict[Path, list[Path]]:
        """The masks of each picture that has any; a mask counts for the nearest picture alone."""
        found: dict[Path, list[Path]] = defaultdict(list)
        for mask, images in self.images.items():
            found[images[0]].append(mask)
        return dict(found)


class _Looked:
    """What files hold and how large they are, each read once, by two threads."""

    def __init__(self) -> None:
        self._held: dict[Path, Holds | None] = {}
        self._sizes: dict[Path, Size] = {}

    def held(self, paths: Iterable[Path]) -> list[Holds | None]:
        """Return what each file holds."""
        return _known(self._held, paths, content.holds)

    def size(self, path: Path) -> Size:
        """Return height and width of a file."""
        return _known(self._sizes, [path], content.size)[0]


def find(paths: Sequence[Path]) -> Matched:
    """Return which of these pictures are masks of others.

    Args:
        paths: image files of one data set or pool.
    """
    named: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        for name in naming.of_image(path):
            named[name].append(path)
    kinds: dict[Kind, list[Path]] = defaultdict(list)
    fitting: dict[Path, dict[Kind, str]] = defaultdict(dict)
    for path in paths:
        for name, besides in naming.of_mask(path).items():
            others = named.get(name, ())
            # Its own name alone is no other picture's.
            if len(others) > 1 or (others and others[0] is not path):
                kind = Kind(path.parent, besides, path.suffix.lower())
                kinds[kind].append(path)
                fitting[path][kind] = name
    looked = _Looked()
    whole = sum(map(len, kinds.values())) <= LOOKED_AT
    some = max(FEWEST, LOOKED_AT // max(1, len(kinds)))
    few = {
        path
        for files in kinds.values()
        for path in _few(files, len(files) if whole else some, looked)
    }
    matched = Matched()
    for path in paths:
        for kind, name in fitting.get(path, {}).items():
            images = _images(path, named[name], few, looked)
            if images:
                matched.images[path], matched.kinds[path] = images, kind
                break
    _by_number(paths, matched, looked)
    matched.widows = _widows(paths, matched, looked)
    return matched


def _by_number(paths: Sequence[Path], matched: Matched, looked: _Looked) -> None:
    """Match folders whose names differ and whose numbers agree: SEM_1 and SEG_1, in_1 and out_1.

    Only where all files of a folder are of few values, all of another are none, and no third folder
    has these numbers.
    """
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    odd: set[Path] = set()
    known = set(matched.images).union(*matched.images.values())
    for path in paths:
        number = naming.number(path)
        if number is None or path in known or number in folders[path.parent]:
            odd.add(path.parent)
        else:
            folders[path.parent][number] = path
    alike: dict[frozenset[str], list[dict[str, Path]]] = defaultdict(list)
    for folder, files in folders.items():
        if folder not in odd and len(files) > 1:
            alike[frozenset(files)].append(files)
    for two in alike.values():
        for masks, images in (two, two[::-1]) if len(two) == 2 else ():
            if _all_drawn(masks, images, looked):
                for number, mask in masks.items():
                    matched.images[mask] = [images[number]]
                    matched.kinds[mask] = Kind(mask.parent, "number", mask.suffix.lower())


def _all_drawn(masks: dict[str, Path], images: dict[str, Path], looked: _Looked) -> bool:
    """Return whether all of these hold few values, none of the others does, and sizes fit."""
    # The first of each tells enough where both are micrographs.
    for some in (FEWEST, len(masks)):
        drawn = set(looked.held(list(masks.values())[:some]))
        pictures = set(looked.held(list(images.values())[:some]))
        if not drawn <= {Holds.FEW, Holds.ONE} or Holds.FEW in pictures:
            return False
    fit = all(looked.size(masks[n]).fits(looked.size(images[n])) for n in masks)
    return fit and Holds.FEW in drawn


def _widows(paths: Sequence[Path], matched: Matched, looked: _Looked) -> set[Path]:
    """Return pictures of few values that lie where masks do, or where masks are said to lie.

    None of them goes with a picture.
    """
    folders = {(kind.folder, kind.suffix) for kind in matched.kinds.values()}
    # What the folders above them all are called says nothing of some of them.
    above = len(Path(os.path.commonpath([path.parent for path in paths])).parts) if paths else 0
    pictures = {path for images in matched.images.values() for path in images}
    rest = [
        path
        for path in paths
        if ((path.parent, path.suffix.lower()) in folders or _in_masks(path, above))
        and path not in matched.images
        and path not in pictures
    ]
    few: dict[Path, bool] = {
        path: what == Holds.FEW for path, what in zip(rest, looked.held(rest), strict=True)
    }
    # What JPEG smeared looks like a picture; most of its folder tells.
    said: dict[Path, list[bool]] = defaultdict(list)
    for path in rest:
        if _in_masks(path, above):
            said[path.parent].append(few[path])
    masks = {folder for folder, own in said.items() if 2 * sum(own) > len(own)}
    return {path for path in rest if few[path] or path.parent in masks}


def _in_masks(path: Path, above: int) -> bool:
    """Return whether a folder on the way to a file is said to hold masks, but for the first."""
    return any(map(naming.says_mask, path.parts[above:-1]))


def _few(files: Sequence[Path], most: int, looked: _Looked) -> list[Path]:
    """Return those files of a kind that hold few values in areas; of one value, with the others."""
    some = files
    if len(files) > most:
        some = [files[place * (len(files) - 1) // (most - 1)] for place in range(most)]
    held = looked.held(some)
    if len(some) < len(files) and Holds.MANY in held and Holds.FEW in held:
        some, held = files, looked.held(files)
    if Holds.FEW not in held:
        return []
    if Holds.MANY not in held:
        return list(files)
    # A mask of one class alone goes with the others of its folder.
    blank = held.count(Holds.FEW) > held.count(Holds.MANY)
    wanted = (Holds.FEW, Holds.ONE) if blank else (Holds.FEW,)
    return [path for path, what in zip(some, held, strict=True) if what in wanted]


def _images(mask: Path, others: Sequence[Path], few: set[Path], looked: _Looked) -> list[Path]:
    """Return the pictures a mask may belong to, nearest first.

    By its name alone a picture is a mask where a folder or the file says so, its images' do not,
    and all else fits: masks over whose micrograph one sees have as many colours as there are.
    """
    if mask not in few and not any(map(naming.says_mask, mask.parent.parts)):
        return []
    own = looked.size(mask)
    images = [
        path
        for path in others
        if path is not mask
        and path not in few
        and (mask in few or _said(mask, path))
        and own.fits(looked.size(path))
    ]
    return sorted(images, key=lambda path: (distance(mask, path), str(path)))


def _said(mask: Path, image: Path) -> bool:
    """Return whether names call one picture the mask of the other, and not the reverse."""
    mine, its = set(mask.parent.parts), set(image.parent.parts)
    says = any(map(naming.says_mask, mine - its))
    return says and not any(map(naming.says_mask, its - mine))


def distance(one: Path, other: Path) -> tuple[int, int]:
    """Return how far two files lie from each other: folders that differ, then their number."""
    mine, its = one.parent.parts, other.parent.parts
    if len(mine) == len(its):
        return sum(a != b for a, b in zip(mine, its, strict=True)), 0
    common = sum(1 for _ in _common(mine, its))
    return len(mine) + len(its) - 2 * common, 1


def _common(mine: Sequence[str], its: Sequence[str]) -> Iterable[str]:
    for a, b in zip(mine, its, strict=False):
        if a != b:
            return
        yield a


Value = TypeVar("Value")


def _known(
    cache: dict[Path, Value], paths: Iterable[Path], look: Callable[[Path], Value]
) -> list[Value]:
    wanted = list(paths)
    new = [path for path in dict.fromkeys(wanted) if path not in cache]
    if len(new) > 1:
        with ThreadPoolExecutor(2) as threads:
            cache.update(zip(new, threads.map(look, new), strict=True))
    elif new:
        cache[new[0]] = look(new[0])
    return [cache[path] for path in wanted]
