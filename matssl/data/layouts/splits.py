"""Files that name the images of each split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from matssl.core import textfiles
from matssl.core.errors import UserError
from matssl.core.wording import cut
from matssl.data.layouts.pairing import Found, split_name


def apply_splits(found: list[Found], source: Path, root: Path) -> tuple[list[Found], list[str]]:
    """Return the images that ``source`` names, each with its split, and notes in words.

    Args:
        found: all images of the folder.
        source: json ``{split: [names]}`` (or such tables by data set), csv with the columns split
            and image, a txt of training names, or a folder of SPLIT.txt files.
        root: folder of the data set.

    Raises:
        UserError: unreadable, names that match no image, or a name in two splits.
    """
    table = read_splits(source, root)
    has_own = any(item.split for item in found)
    by_name: dict[str, list[Found]] = {}
    for item in found:
        for key in {item.image.name, item.image.stem}:
            by_name.setdefault(key, []).append(item)
    result: list[Found] = []
    seen: dict[Path, str] = {}
    for split, names in table.items():
        for name in names:
            candidates = by_name.get(Path(name).name) or by_name.get(Path(name).stem) or []
            if has_own:
                # Where the folders name splits too, the image of the same split is meant.
                same = [item for item in candidates if item.split == split]
                candidates = same or candidates
            if not candidates:
                raise UserError(
                    f"{source} names {cut(repr(name))} in {split}, which is not in {root}"
                )
            item = candidates[0]
            if item.image in seen and seen[item.image] != split:
                raise UserError(
                    f"{source} puts {cut(repr(name))} into {seen[item.image]} and into {split}"
                )
            seen[item.image] = split
            result.append(replace(item, split=split))
    unused = len(found) - len(seen)
    notes = [f"{unused} images are in no split of {source.name} and are left out"] * bool(unused)
    return result, notes


def read_splits(source: Path, root: Path) -> dict[str, list[str]]:
    """Return ``{split: [image names]}`` from a file or folder of split lists."""
    if source.is_dir():
        lists = sorted(source.glob("*.txt"))
        if not lists:
            raise UserError(f"{source} holds no SPLIT.txt file")
        return {split_name(path.stem): textfiles.read_lines(path) for path in lists}
    if not source.is_file():
        raise UserError(f"there is no split file {source}")
    if source.suffix.lower() == ".json":
        return _json_splits(textfiles.read_json(source), source, root)
    if source.suffix.lower() == ".csv":
        return _csv_splits(source)
    return {"train": textfiles.read_lines(source)}


def _json_splits(content: object, source: Path, root: Path) -> dict[str, list[str]]:
    if isinstance(content, dict) and content and all(isinstance(v, list) for v in content.values()):
        return {split_name(key): [str(n) for n in names] for key, names in content.items()}
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
    rows = textfiles.read_rows(source)
    column = next((c for c in ("image", "file", "name") if rows and c in rows[0]), None)
    if column is None or "split" not in rows[0]:
        raise UserError(f"{source} needs the columns image and split")
    table: dict[str, list[str]] = {}
    for row in rows:
        table.setdefault(split_name(row["split"]), []).append(row[column])
    return table
