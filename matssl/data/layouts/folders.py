"""Layouts made of folders, and the files that name the images of a split."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matssl.core.errors import UserError
from matssl.data import readers

MASK_NAMES = ("annotations", "labels", "masks", "targets", "gt", "annot", "mask", "label")
IMAGE_NAMES = ("images", "inputs", "img", "image", "imgs")
SPLIT_ALIASES = {"valid": "val", "validation": "val", "validate": "val", "training": "train"}
ANNOT_SUFFIXES = ("_annot", "_annotations", "_masks", "_mask", "_labels", "_label", "_gt")
MASK_SUFFIXES = ("_mask", "_label", "_labels", "_annot", "_gt", "-mask", "_seg")


@dataclass(frozen=True)
class Found:
    """An image with its mask, and the split its folder names ("" for none)."""

    image: Path
    mask: Path | None
    split: str


def annot_folders(root: Path) -> list[Found] | None:
    """``train`` beside ``train_annot`` (or ``_mask(s)``, ``_labels``), for any split name."""
    found: list[Found] = []
    for folder in _folders(root):
        for suffix in ANNOT_SUFFIXES:
            masks = root / f"{folder.name}{suffix}"
            if masks.is_dir():
                found += _pair(folder, masks, _split_name(folder.name))
                break
    return _ordered(found)


def inputs_targets(root: Path) -> list[Found] | None:
    """``train/inputs`` beside ``train/targets`` (or images and masks, img and gt)."""
    found: list[Found] = []
    for folder in _folders(root):
        both = _image_and_mask_folder(folder)
        if both:
            found += _pair(*both, _split_name(folder.name))
    return _ordered(found)


def images_masks(root: Path) -> list[Found] | None:
    """``images`` beside ``masks``, ``labels`` or ``annotations``; splits come from elsewhere."""
    both = _image_and_mask_folder(root)
    return _pair(*both, "") if both else None


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
                raise UserError(f"{source} names {name!r} in {split}, which is not in {root}")
            item = candidates[0]
            if item.image in seen and seen[item.image] != split:
                raise UserError(f"{source} puts {name!r} into {seen[item.image]} and into {split}")
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
        return {_split_name(path.stem): _lines(path) for path in lists}
    if not source.is_file():
        raise UserError(f"there is no split file {source}")
    try:
        if source.suffix == ".json":
            return _json_splits(json.loads(source.read_text(encoding="utf-8")), source, root)
        if source.suffix == ".csv":
            return _csv_splits(source)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read: {error}") from error
    return {"train": _lines(source)}


def _json_splits(content: Any, source: Path, root: Path) -> dict[str, list[str]]:
    if isinstance(content, dict) and content and all(isinstance(v, list) for v in content.values()):
        return {_split_name(key): [str(n) for n in names] for key, names in content.items()}
    if isinstance(content, dict):
        place = root.resolve().as_posix()
        fitting = [k for k in content if place == k or place.endswith("/" + k)]
        if fitting:
            return _json_splits(content[max(fitting, key=len)], source, root)
        known = ", ".join(k for k, v in content.items() if isinstance(v, dict))
        raise UserError(f"{source} has no entry for {root}; it has: {known}")
    raise UserError(f"{source} must hold {{split: [image names]}}")


def _csv_splits(source: Path) -> dict[str, list[str]]:
    with open(source, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    column = next((c for c in ("image", "file", "name") if rows and c in rows[0]), None)
    if column is None or "split" not in rows[0]:
        raise UserError(f"{source} needs the columns image and split")
    table: dict[str, list[str]] = {}
    for row in rows:
        table.setdefault(_split_name(row["split"]), []).append(row[column])
    return table


def _lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def mask_folders(root: Path) -> list[Path]:
    """Return the folders at or below ``root`` that hold masks of images beside them."""
    found = []
    for folder in sorted(p for p in root.rglob("*") if p.is_dir()):
        beside = {p.name.lower() for p in folder.parent.iterdir() if p.is_dir()}
        name = folder.name.lower()
        word = next((w for w in MASK_NAMES if re.match(rf"{w}(_|-|$)", name)), None)
        image = next((name.removesuffix(s) for s in ANNOT_SUFFIXES if name.endswith(s)), None)
        if (word and beside & set(IMAGE_NAMES)) or image in beside:
            found.append(folder)
    return found


def _pair(images: Path, masks: Path, split: str) -> list[Found]:
    """Match images and masks by stem; both sides must fit."""
    mask_by_stem: dict[str, Path] = {}
    for path in _files(masks):
        stems = {path.stem, *(_without_suffix(path.stem))}
        for stem in stems:
            mask_by_stem.setdefault(stem.lower(), path)
    pairs, lonely = [], []
    used: dict[Path, Path] = {}
    for image in _files(images):
        mask = mask_by_stem.get(image.stem.lower())
        if mask is None:
            lonely.append(image)
        elif mask in used:
            raise UserError(
                f"{images} holds {used[mask].name} and {image.name}, but {masks.name} only "
                f"{mask.name}; remove one of the images"
            )
        else:
            used[mask] = image
            pairs.append(Found(image, mask, split))
    if lonely:
        raise UserError(
            f"{len(lonely)} image{'s' * (len(lonely) > 1)} in {images} without a mask in "
            f"{masks.name} (first: {lonely[0].name}); add the mask or remove the image"
        )
    widowed = [path for path in _files(masks) if path not in used]
    if widowed:
        raise UserError(
            f"{len(widowed)} mask{'s' * (len(widowed) > 1)} in {masks} without an image in "
            f"{images.name} (first: {widowed[0].name}); add the image or remove the mask"
        )
    return pairs


def _without_suffix(stem: str) -> Iterable[str]:
    return (stem[: -len(s)] for s in MASK_SUFFIXES if stem.lower().endswith(s))


def _image_and_mask_folder(folder: Path) -> tuple[Path, Path] | None:
    names = {path.name.lower(): path for path in _folders(folder)}
    images = next((names[name] for name in IMAGE_NAMES if name in names), None)
    masks = next((names[name] for name in MASK_NAMES if name in names), None)
    return (images, masks) if images and masks else None


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    files = [p for p in folder.iterdir() if p.is_file() and readers.is_image_name(p.name)]
    return sorted(files, key=lambda path: readers.natural(path.name))


def _split_name(name: str) -> str:
    return SPLIT_ALIASES.get(name.lower(), name)


def _ordered(found: list[Found]) -> list[Found] | None:
    """Return train, val, test and then the others; None where nothing was found."""
    rank = {"train": 0, "val": 1, "test": 2}
    return sorted(found, key=lambda item: rank.get(item.split, 3)) or None
