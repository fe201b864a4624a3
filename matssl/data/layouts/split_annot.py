"""``train`` beside ``train_annot`` (or ``_mask(s)``, ``_labels``), for any split name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from matssl.data.layouts.pairing import (
    Found,
    Layout,
    by_split,
    folders_in,
    pair_by_name,
    split_name,
)

SUFFIXES = ("_annot", "_annotations", "_masks", "_mask", "_labels", "_label", "_gt")


def _pairs(root: Path, some: bool = False) -> list[Found] | None:
    found: list[Found] = []
    for folder in folders_in(root):
        for suffix in SUFFIXES:
            masks = root / f"{folder.name}{suffix}"
            if masks.is_dir():
                found += pair_by_name(folder, masks, split_name(folder.name), some)
                break
    return by_split(found)


def _no_micrographs(folder: Path) -> list[Path]:
    folders = {path: path.name.lower() for path in folders_in(folder)}
    images = set(folders.values())
    return [
        path
        for path, name in folders.items()
        if any(name.endswith(s) and name.removesuffix(s) in images for s in SUFFIXES)
    ]


LAYOUT = Layout("train + train_annot", _pairs, _no_micrographs, some=partial(_pairs, some=True))
