"""Files that name the images of each split."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data.layouts import index, naming
from matssl.data.layouts.pairing import SPLITS, Found, split_name
from matssl.data.readers import file_of

# What people head the columns of a list with.
IMAGE_HEADS = ("image", "file", "name", "filename", "path", "images", "bild", "datei")
SPLIT_HEADS = ("split", "set", "subset", "part", "teil")


def apply_splits(found: list[Found], source: Path, root: Path) -> tuple[list[Found], list[str]]:
    """Return the images that ``source`` names, each with its split, and notes in words.

    Names are compared as Windows does, whatever program wrote them: without capitals, with slashes
    of either kind, an umlaut stored either way. With folders a name means the image in them.

    Args:
        found: all images of the folder.
        source: json ``{split: [names]}`` (or such tables by data set), csv with the columns split
            and image, a txt of training names, a folder of SPLIT.txt files, or JSON indices of
            samples: one that says its splits, or a folder of NAME_SPLIT.json.
        root: folder of the data set.

    Raises:
        UserError: unreadable, names that match no image or several, or a name in two splits.
    """
    result, unused = apply_table(found, read_splits(source, root), str(source), root)
    notes = [f"{unused} images are in no split of {source.name} and are left out"] * bool(unused)
    return result, notes


def apply_table(
    found: list[Found], table: Mapping[str, Sequence[str]], source: str, root: Path
) -> tuple[list[Found], int]:
    """Return the images that a table names, each with its split, and how many it does not name.

    Args:
        found: all images of the folder.
        table: names by split.
        source: where they come from, for messages.
        root: folder of the data set.

    Raises:
        UserError: names that match no image or several, or a name in two splits.
    """
    named: dict[str, list[Found]] = {}
    for item in found:
        # A stack stands for its pages.
        for key in {f(p) for p in (item.image, file_of(item.image)) for f in (_last, naming.stem)}:
            named.setdefault(key, []).append(item)
    result: list[Found] = []
    seen: dict[Path, str] = {}
    absent: list[str] = []
    doubtful: list[str] = []
    for split, names in table.items():
        for name in names:
            meant = _meant(name, split, named)
            if len({file_of(item.image) for item in meant}) != 1:
                (doubtful if meant else absent).append(f"{cut(repr(name), 80)} in {split}")
                continue
            for item in meant:
                if seen.get(item.image, split) != split:
                    raise UserError(
                        f"{source} puts {cut(repr(name))} into {seen[item.image]} and into {split}"
                    )
                if item.image not in seen:
                    result.append(replace(item, split=split))
                seen[item.image] = split
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        verb = "is" if len(absent) == 1 else "are"
        raise UserError(f"{source} names {', '.join(absent[:3])}{more}, which {verb} not in {root}")
    if doubtful:
        raise UserError(
            f"{source} names {doubtful[0]}, which several images of {root} fit "
            f"({len(doubtful)} such lines); write their folders before the names"
        )
    if not result:
        raise UserError(f"{source} gives no image a split")
    return result, len(found) - len(seen)


def _meant(name: str, split: str, named: dict[str, list[Found]]) -> list[Found]:
    """Return the images a line of a list may mean."""
    wanted = _plain(name)
    last = wanted.rsplit("/", 1)[-1]
    fitting = named.get(last) or named.get(naming.stem(Path(last))) or []
    folders = wanted.split("/")[-2::-1]
    if folders and len(fitting) > 1:
        # As far as the line's folders go; those above the data set do not matter.
        def common(item: Found) -> int:
            own = _plain(item.image.parent.as_posix()).split("/")[::-1]
            pairs = zip(folders, own, strict=False)
            return next((i for i, (a, b) in enumerate(pairs) if a != b), len(folders))

        nearest = max(map(common, fitting))
        fitting = [item for item in fitting if common(item) == nearest]
    if len(fitting) > 1:
        # Where the folders name splits too, the image of the same split is meant.
        fitting = [item for item in fitting if item.split == split] or fitting
    if len(fitting) > 1:
        fitting = [item for item in fitting if _plain(item.image.name) == last] or fitting
    return fitting


def _last(path: Path) -> str:
    return _plain(path.name)


def _plain(name: str) -> str:
    """Return a path as names are compared: NFC, no capitals, slashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).lower()


def read_splits(source: Path, root: Path) -> dict[str, list[str]]:
    """Return ``{split: [image names]}`` from a file or folder of split lists."""
    if source.is_dir():
        lists = sorted(path for path in source.iterdir() if path.suffix.lower() == ".txt")
        indices = [] if lists else index.split_files(source)
        if indices:
            return _of_indices(indices)
        if not lists:
            raise UserError(f"{source} holds no SPLIT.txt file")
        return _joined((path.stem, _names(path)) for path in lists)
    if not source.is_file():
        raise UserError(f"there is no split file {source}")
    if source.suffix.lower() == ".json":
        return _json_splits(textfiles.read_json(source, "--splits"), source, root)
    if source.suffix.lower() in (".csv", ".tsv"):
        return _csv_splits(source)
    return {"train": _names(source)}


def _names(path: Path) -> list[str]:
    """Return the names of a list, without the quotes and commas of what it was copied from."""
    lines = (line.rstrip(",; \t") for line in textfiles.read_lines(path))
    quoted = re.compile(r"([\"'])(.+)\1")
    found = ((line, quoted.fullmatch(line)) for line in lines if line)
    return [match[2] if match else line for line, match in found]


def _joined(lists: Iterable[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """Return names by split; what two lists call the same split is one."""
    table: dict[str, list[str]] = {}
    for name, names in lists:
        table.setdefault(split_name(name), []).extend(names)
    return table


def _of_indices(paths: Sequence[Path]) -> dict[str, list[str]]:
    """Return the images of index files by split.

    Raises:
        UserError: one does not say its split.
    """
    table: dict[str, list[str]] = {}
    for path in paths:
        listed = index.read_index(path)
        if not listed.split:
            raise UserError(
                f"{path} lists images and not which split they are in; give its folder, where "
                "NAME_train.json and the others lie, or give it in place of the folder of images"
            )
        for item in listed.found:
            table.setdefault(item.split, []).append(item.image.as_posix())
    return table


def _json_splits(content: object, source: Path, root: Path) -> dict[str, list[str]]:
    if index.is_index(content):
        return _of_indices([source])
    if isinstance(content, dict) and content and all(isinstance(v, list) for v in content.values()):
        return _joined((key, [str(n) for n in names]) for key, names in content.items())
    if isinstance(content, dict):
        place = root.resolve().as_posix()
        tables = {k: v for k, v in content.items() if isinstance(v, dict)}
        fitting = [k for k in tables if place == k or place.endswith("/" + k)]
        if fitting and all(isinstance(v, list) for v in tables[max(fitting, key=len)].values()):
            return _json_splits(content[max(fitting, key=len)], source, root)
        if tables:
            raise UserError(f"{source} has no entry for {root}; it has: {cut(', '.join(tables))}")
    raise UserError(f"{source} must hold {{split: [image names]}}")


def _csv_splits(source: Path) -> dict[str, list[str]]:
    rows = textfiles.read_rows(source, "--splits")
    heads = {head.lower().strip(): head for head in (rows[0] if rows else {})}
    if "" not in heads and set(map(split_name, heads)) <= set(SPLITS):
        # A column for each split.
        return _joined((h, [row[heads[h]] for row in rows if row[heads[h]]]) for h in heads)
    image = next((heads[head] for head in IMAGE_HEADS if head in heads), None)
    split = next((heads[head] for head in SPLIT_HEADS if head in heads), None)
    if image is None or split is None:
        raise UserError(f"{source} needs the columns image and split, or train, val and test")
    table: dict[str, list[str]] = {}
    for number, row in enumerate(rows, start=2):
        if not row[image]:
            raise UserError(f"{source}, line {number}: no image is named")
        # An image without a split is left out, like one that has no line.
        if row[split]:
            table.setdefault(split_name(row[split].strip()), []).append(row[image])
    return table
